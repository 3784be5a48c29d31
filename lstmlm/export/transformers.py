"""A folder that transformers loads without this package, and this package too: the same files, with code and a tokenizer beside them."""

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm.console import UserError, need, one_line
from lstmlm.data.tokenize import INVISIBLE
from lstmlm.data.vocabulary import EOS, UNK, Vocabulary
from lstmlm.files import MODEL_FILES, OutputFolder, read_file
from lstmlm.model.pretrained import CARD, CONFIG, VOCABULARY, WEIGHTS, find_model, load, plain, read_card

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CODE = Path(__file__).with_name("modeling_lstmlm.py")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenization_lstmlm.py")
GENERATION = "generation_config.json"
PAD = "<pad>"  # beyond the vocabulary: no row of the embedding, and never scored
# Of the capital sigmas those that str.lower() makes a final one: after a letter that has a case and before none.
_CASED, _SKIPPED = r"[\p{Cased}&&[^\p{Case_Ignorable}]]", r"\p{Case_Ignorable}*"
FINAL_SIGMA = rf"{_CASED}{_SKIPPED}\KΣ(?!{_SKIPPED}{_CASED})"
USAGE = """
## With transformers

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this folder>", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("<this folder>", trust_remote_code=True)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=30, do_sample=True)[0]))
```

A text begins with `<eos>`, which the tokenizer puts there, and a line end is `<eos>` too.
`model(input_ids, state=state).state` carries the hidden state from one call to the next.
"""


def export_transformers(model: str | Path | None, folder: str | Path) -> None:
    """Write what `AutoModelForCausalLM`, `AutoModel` and `AutoTokenizer` need of the model that `find_model` finds.

    Raises:
        UserError: The model cannot be read, or transformers is not installed.
    """
    source = find_model(model)
    output = OutputFolder(folder, (*MODEL_FILES, CODE.name, *TOKENIZER, GENERATION), again=CODE.name, source=source)
    need("--to transformers", "export", "transformers")
    card, saved = read_card(source), load(source, device="cpu")
    vocabulary, described = saved.vocabulary, saved.description.to_dict()
    place = described["data"]["dataset"]
    if Path(place).is_absolute():  # earlier versions wrote the place on the training machine
        described["data"]["dataset"] = Path(place).name
        for written in (place, plain(place)):
            card = re.sub(rf"(?<![\w./]){re.escape(written)}(?![\w/])", lambda _: plain(Path(place).name), card)
    tokenizer = build_tokenizer(vocabulary)
    names = {"AutoConfig": "LstmLmConfig", "AutoModel": "LstmLmModel", "AutoModelForCausalLM": "LstmLmForCausalLM"}
    ends = {"bos_token_id": vocabulary.eos, "eos_token_id": vocabulary.eos}
    config = {
        **described,
        "model_type": "lstmlm",
        "architectures": [names["AutoModelForCausalLM"]],
        "auto_map": {auto: f"{CODE.stem}.{name}" for auto, name in names.items()},
        "dtype": "float32",
        "padding_id": tokenizer.pad_token_id,
        **ends,
    }
    contents = {
        CODE.name: CODE.read_bytes(),
        VOCABULARY: vocabulary.to_bytes(),
        CARD: (card.removesuffix(USAGE) + USAGE).encode(),
        WEIGHTS: _told_to_be_of_torch(read_file(source / WEIGHTS)),
        GENERATION: json.dumps(ends | {"pad_token_id": tokenizer.pad_token_id, "suppress_tokens": [vocabulary.unk]}, indent=2).encode(),
        CONFIG: json.dumps(config, indent=2).encode(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        output.write({path.name: path.read_bytes() for path in Path(scratch).iterdir()} | contents)


def push_to_hub(model: str | Path | None, name: str, private: bool = False) -> str:
    """Make or update the model repository `name`, user/model, in one commit, whose address this gives; `private` is for a new one.

    Raises:
        UserError: The model cannot be read, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="lstmlm")
    with tempfile.TemporaryDirectory() as folder:
        export_transformers(model, folder)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="A model trained with lstmlm")
        except Exception as error:  # the Hub's client raises its transport's kinds too
            raise UserError(f"cannot push to {name}: {one_line(error)} (hf auth login, or HF_TOKEN, says who you are)") from None
    return str(commit.commit_url)


def _told_to_be_of_torch(content: bytes) -> bytes:
    """A safetensors file whose header says `format: pt`, as Accelerate and the Hub's client want, in order: the writer's is random."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted({**header.get("__metadata__", {}), "format": "pt"}.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment
    return len(text).to_bytes(8, "little") + text + content[end:]


def build_tokenizer(vocabulary: Vocabulary) -> "PreTrainedTokenizerFast":
    """A tokenizer that gives the ids of a vocabulary, with `<eos>` before a text and for each line end."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from lstmlm.export.tokenization_lstmlm import LstmLmTokenizer

    ids, eos, bpe = {token: i for i, token in enumerate(vocabulary.tokens)}, EOS, vocabulary.level == "bpe"
    if bpe:
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in vocabulary.merges)]
        tokenizer = Tokenizer(models.BPE(ids, pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder, line_end = decoders.ByteLevel(), EOS
    elif vocabulary.level == "char":
        eos = line_end = "\n"  # the name that the vocabulary's <eos> has there: `<eos>` in a text is five characters
        ids[eos] = ids.pop(EOS)
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        line_end = f" {EOS} "
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\x1c-\x1f]+"), "removed")  # as str.split
    steps: list[Any] = [normalizers.Replace(Regex(r"\r\n|\r|\n"), line_end)]  # as `tokenize.plain`
    moses = vocabulary.tokenizer == "moses"
    if vocabulary.normalize and not moses:  # which gets a prepared text
        invisible = "".join(f"\\x{{{code:04X}}}" for code in INVISIBLE)
        steps += [normalizers.Replace(Regex(f"[{invisible}]"), ""), normalizers.NFC()]
    if vocabulary.lowercase and not moses:
        steps += [normalizers.Replace(Regex(FINAL_SIGMA), "ς"), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(f"{eos} $A", f"{eos} $A {eos} $B", [(eos, ids[eos])])
    pad = PAD
    while pad in ids:
        pad = f"<{pad}>"
    eos_token = AddedToken(eos, normalized=True, special=True)
    words = {"moses": moses, "lowercase": vocabulary.lowercase, "normalize": vocabulary.normalize} if vocabulary.level == "word" else {}
    return (LstmLmTokenizer if words else PreTrainedTokenizerFast)(
        tokenizer_object=tokenizer,
        bos_token=eos_token,
        eos_token=eos_token,
        unk_token=AddedToken(UNK, normalized=True, special=True),
        pad_token=AddedToken(pad, special=True),
        padding_side="left",  # so that what `generate` goes on from is a text's last token
        clean_up_tokenization_spaces=False,
        # A special token's name in a text is one to byte-pair encoding only. Elsewhere it is cut like any other text.
        split_special_tokens=not bpe,
        **words,
    )
