# The GPU box as a container (docs/gpu-box.md). Not built here: no base image could be fetched, so it is checked by a
# linter only. To pin the base image for good, put its digest after the tag: FROM …@sha256:…
#
#     docker build --tag qlora --build-arg USER_ID="$(id -u)" .
#     docker run --rm -it --gpus all --shm-size 8g --volume "$PWD:/home/user/pipeline" qlora
#
# The repository is mounted, not copied, so data, models and secrets are in no layer. PyTorch's wheels bring CUDA's
# libraries; the host has only the driver and the NVIDIA Container Toolkit.
FROM python:3.11.14-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Versions are those of the base image's Debian release. bubblewrap is the sandbox for generated code.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap git make openssh-client tmux \
    && rm -rf /var/lib/apt/lists/*

ARG USER_ID=1000
RUN useradd --create-home --uid "$USER_ID" --shell /bin/bash user \
    && mkdir /home/user/pipeline \
    && chown user: /home/user/pipeline
USER $USER_ID
WORKDIR /home/user/pipeline

ENV VIRTUAL_ENV=/home/user/venv \
    PATH=/home/user/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
COPY --chown=$USER_ID requirements.txt constraints.txt /tmp/requirements/
RUN python -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir --disable-pip-version-check --requirement /tmp/requirements/requirements.txt

CMD ["bash"]
