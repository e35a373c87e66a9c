# Two stages: the compiler stays in the first.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake git && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/llmgallery
ENV PATH=/opt/llmgallery/bin:$PATH
# Machines other than the one that builds must be able to run it (on x86-64: any with AVX2).
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF"
WORKDIR /src
COPY . .
# EXTRAS=transformers, or several with commas, adds backends. torch is for the CPU then; TORCH_INDEX is where it is from: the
# index of a CUDA version (https://download.pytorch.org/whl/cu128) for machines with NVIDIA GPUs.
ARG EXTRAS=""
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN if [ -n "$EXTRAS" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" "$TORCH"; fi
RUN pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 llmgallery \
    && mkdir -p /models /cache /data && chown llmgallery /models /cache /data
COPY --from=build /opt/llmgallery /opt/llmgallery
ENV PATH=/opt/llmgallery/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LLMGALLERY_HOST=0.0.0.0 \
    LLMGALLERY_PORT=8080 \
    LLMGALLERY_MODELS_DIR=/models \
    LLMGALLERY_DATA_DIR=/data \
    HF_HOME=/cache
USER llmgallery
WORKDIR /home/llmgallery
VOLUME ["/models", "/cache", "/data"]
EXPOSE 8080
# /healthz needs neither a key nor an allowed host.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:%s/healthz' % os.environ['LLMGALLERY_PORT'], timeout=4)"]
# Exec form: SIGTERM reaches the server, which then drains.
ENTRYPOINT ["llmgallery"]
CMD ["serve"]
