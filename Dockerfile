# docker build -t lstm-lm .
# docker build -t lstm-lm --build-arg TORCH_INDEX=<URL of PyTorch's CPU wheel index> .     a smaller image, for CPUs
# docker run --rm lstm-lm [--config smoke] [--section.key VALUE ...]
FROM python:3.11-slim

# PyPI's Linux torch is the CUDA build, several GB; another index can give another build.
ARG TORCH_INDEX=""

# tini as PID 1 hands signals on to the trainer, which then saves and leaves.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 lstmlm \
    && mkdir /home/lstmlm/runs /home/lstmlm/.cache \
    && chmod 777 /home/lstmlm /home/lstmlm/runs /home/lstmlm/.cache

WORKDIR /opt/lstmlm
COPY constraints.txt ./
# The version is read from constraints.txt.
# hadolint ignore=DL3013
RUN version=$(sed -n 's/^torch==//p' constraints.txt) \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$version"
# What lstmlm and the extras need, in a layer of its own that a change of the code leaves as it is.
COPY pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; print(*project['dependencies'], *extras['moses'], *extras['bpe'], sep='\n')" > needed.txt \
    && pip install --no-cache-dir -c constraints.txt -r needed.txt \
    && rm needed.txt
COPY README.md LICENSE ./
COPY models/LICENSE ./models/
COPY models/wikitext2-compact ./models/wikitext2-compact
COPY configs ./configs
COPY lstmlm ./lstmlm
RUN pip install --no-cache-dir --no-deps . \
    && rm -rf build ./*.egg-info
COPY accelerate_config.yaml ./
COPY scripts ./scripts
# COPY keeps modes, and the checkout may have been made for its owner alone.
RUN chmod -R a+rX accelerate_config.yaml scripts configs

# Mount folders on runs and .cache to keep them. `docker run --user` names whose they are: any user can write in this home.
ENV HOME=/home/lstmlm
USER 1000
WORKDIR /home/lstmlm

# No launcher where one process is all there is: it would not hand signals on.
ENTRYPOINT ["tini", "--", "python", "/opt/lstmlm/scripts/train.py"]
