# hylorada-train for one machine, with a GPU or without; how to build and run it: docs/SCALING.md, "In a container".
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY conf conf
COPY src src
RUN python -m pip install --no-cache-dir -c constraints.txt hatchling \
 && python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist .

FROM python:${PYTHON}-slim-bookworm
# Empty: the index of Python packages, whose torch brings CUDA and also runs without a GPU.
# https://download.pytorch.org/whl/cpu: much smaller, without CUDA.
ARG TORCH_INDEX=
ARG EXTRAS=gguf,joblib
# Of the user that writes into the volumes.
ARG UID=1000
# train.compile=layers compiles C++, and Triton compiles C.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /install
COPY constraints.txt ./
RUN python -m pip install --no-cache-dir "$(grep '^torch==' constraints.txt)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY --from=wheel /build/dist dist
RUN python -m pip install --no-cache-dir -c constraints.txt "$(ls dist/hylorada-*.whl)[${EXTRAS}]"

RUN useradd --create-home --uid "$UID" hylorada
USER hylorada
WORKDIR /home/hylorada
# A volume belongs to whom its folder belongs: they must be there before.
RUN mkdir outputs .cache
VOLUME ["/home/hylorada/outputs", "/home/hylorada/.cache"]
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
# In this form it is process 1, which hears `docker stop`: the run saves.
ENTRYPOINT ["hylorada-train"]
CMD ["--help"]
