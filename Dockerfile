# The steps of scripts/quickstart in two stages: build with compilers, run without them and not as root.
# The image brings the model and its twin, and listens to whoever reaches the published port:
#   docker build -t overfill . && docker run -p 8080:8080 overfill
FROM debian:12-slim AS build
WORKDIR /src
COPY . .
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 git \
    && ./scripts/quickstart --prepare

FROM debian:12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        libuv1 libmicrohttpd12 libcjson1 libopenblas0-pthread liblapacke libpcre2-8-0 zlib1g libcyaml1 libyaml-0-2 curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home overfill
COPY --from=build /src/build/cli/overfill /usr/local/bin/overfill
COPY --from=build /src/models/*.gguf /models/
USER overfill
ENV OVERFILL_MODEL=/models/SmolLM2-135M-Instruct.Q4_1.gguf \
    OVERFILL_PRUNED=/models/smollm2-135m-overfill.gguf \
    OVERFILL_HOST=0.0.0.0 \
    OVERFILL_ALLOW_OPEN=yes \
    OVERFILL_PORT=8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD curl -sf http://127.0.0.1:8080/health || exit 1
ENTRYPOINT ["overfill"]
CMD ["serve"]
