# The package with everything that trains, on a CUDA runtime: docker build -t amradio . && docker run --gpus all -v "$PWD:/work" amradio quickstart
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE /src/
COPY src /src/src
RUN python3 -m venv /opt/amradio \
    && /opt/amradio/bin/pip install --no-cache-dir --constraint /src/constraints.txt "/src[coco,data,onnx,track,train,vlm]"
ENV PATH=/opt/amradio/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["amradio"]
CMD ["--help"]
