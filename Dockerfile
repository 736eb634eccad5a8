# For CPUs: docker build -t resnet_jax .
# For NVIDIA GPUs: docker build -t resnet_jax --build-arg EXTRAS=cuda .
FROM python:3.12-slim
ARG EXTRAS=""
# The compiler is for the CPU kernels, which are compiled at the first run.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip install --no-cache-dir "/src${EXTRAS:+[$EXTRAS]}"
WORKDIR /work
ENTRYPOINT ["resnet-jax"]
