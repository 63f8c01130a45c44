# The package with everything that trains: docker build -t amradio .
# docker run --rm --gpus all --shm-size=8g --user "$(id -u):$(id -g)" -v "$PWD:/work" amradio quickstart out=runs/first
# The CUDA runtime is that of torch's wheels, whose version constraints.txt fixes; a second one in the image would only be confused with it.
FROM ubuntu:24.04
# g++ and python3-dev: engine.compile builds with them
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE /src/
COPY src /src/src
RUN python3 -m venv /opt/amradio \
    && /opt/amradio/bin/pip install --no-cache-dir --constraint /src/constraints.txt "/src[coco,data,onnx,track,train,vlm]" \
    && rm -rf /src
ENV PATH=/opt/amradio/bin:$PATH PYTHONUNBUFFERED=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Any --user can write here, and the weights of teachers outlive the container, in .cache of the mounted folder; USER: torch asks for a name
ENV HOME=/work USER=amradio
WORKDIR /work
ENTRYPOINT ["amradio"]
CMD ["--help"]
