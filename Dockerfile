# docker build -t lstm-lm .
# docker build -t lstm-lm --build-arg TORCH_INDEX=<URL of PyTorch's CPU wheel index> .     a smaller image, for CPUs
# docker run --rm lstm-lm [--config /opt/lstmlm/configs/smoke.yaml] [--section.key VALUE ...]
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
COPY pyproject.toml README.md LICENSE ./
COPY models ./models
COPY lstmlm ./lstmlm
RUN pip install --no-cache-dir -c constraints.txt . \
    && rm -rf build ./*.egg-info
COPY accelerate_config.yaml ./
COPY scripts ./scripts
COPY configs ./configs
# COPY keeps modes, and the checkout may have been made for its owner alone.
RUN chmod -R a+rX accelerate_config.yaml scripts configs

# Mount folders on runs and .cache to keep them. `docker run --user` names whose they are: any user can write in this home.
ENV HOME=/home/lstmlm
USER 1000
WORKDIR /home/lstmlm

# No launcher where one process is all there is: it would not hand signals on.
ENTRYPOINT ["tini", "--", "python", "/opt/lstmlm/scripts/train.py"]
