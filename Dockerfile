# The binary alone, in a small image.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package cli

FROM debian:bookworm-slim
# rediss:// trusts what this machine trusts.
RUN apt-get update \
  && apt-get install --yes --no-install-recommends ca-certificates \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/agent-relay /usr/local/bin/agent-relay
USER 65534:65534
EXPOSE 8080
# Not through a shell: SIGTERM must reach the relay, which then sends its browsers elsewhere.
ENTRYPOINT ["agent-relay"]
CMD ["serve"]
