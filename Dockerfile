# The job in a container: no root, nothing written to its file system.

# The full image, not the slim one: librdkafka is compiled here, with OpenSSL and zlib.
FROM rust:1.95-bookworm AS chef
RUN cargo install cargo-chef --locked --version 0.1.78
WORKDIR /build

FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
ENV CARGO_PROFILE_RELEASE_STRIP=true
# The dependencies, a layer that lasts until Cargo.toml or Cargo.lock changes: DataFusion and librdkafka take a while.
COPY --from=plan /build/recipe.json recipe.json
RUN cargo chef cook --release --locked --bin dinnerbell --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --bin dinnerbell

FROM debian:bookworm-slim
# Unpinned on purpose: a rebuild takes Debian's security fixes of OpenSSL.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin dinnerbell
COPY --from=build /build/target/release/dinnerbell /usr/local/bin/dinnerbell
# The defaults; mount your own over them. The job reads them at run time.
COPY sql /etc/dinnerbell/sql
COPY docker/dinnerbell.toml /etc/dinnerbell/dinnerbell.toml
WORKDIR /etc/dinnerbell
USER 10001
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200'"]
ENTRYPOINT ["dinnerbell"]
CMD ["run"]
