# Two images: holdfast (the binary alone, for sidecar proxies and witnesses) and database (with
# PostgreSQL's server and tools, for nodes). docs/image.md tells how to build them, also without a
# registry. Any base works: the binary is static.
ARG BUILDER=docker.io/library/golang:1.26-bookworm
ARG BASE=gcr.io/distroless/static-debian12:nonroot
ARG DATABASE_BASE=docker.io/library/debian:bookworm-slim

FROM ${BUILDER} AS build
ARG VERSION=unreleased
# Where modules come from; the toolchain's own default if it is not given.
ARG GOPROXY
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags hashicorpmetrics \
        -ldflags "-s -w -X main.version=${VERSION}" -o /out/holdfast ./cmd/holdfast \
    && mkdir -p /out/data

FROM ${BASE} AS holdfast
COPY --from=build /out/holdfast /usr/local/bin/holdfast
# 65532 is the user "nonroot" of distroless images; a number needs no entry in /etc/passwd, and
# lets Kubernetes see that it is not root.
COPY --from=build --chown=65532:65532 /out/data /var/lib/holdfast
USER 65532:65532
# 6432 clients, 7400 nodes; 7401 is for loopback only.
EXPOSE 6432 7400
ENTRYPOINT ["/usr/local/bin/holdfast"]
CMD ["serve", "-c", "/etc/holdfast/holdfast.yaml"]

FROM ${DATABASE_BASE} AS database
ARG POSTGRES_PACKAGE=postgresql
# createcluster.d: the package would make and start a server of its own.
RUN mkdir -p /etc/postgresql-common/createcluster.d \
    && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/holdfast.conf \
    && apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        ${POSTGRES_PACKAGE} ca-certificates \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && install -d -o postgres -g postgres -m 0700 /var/lib/holdfast
COPY --from=build /out/holdfast /usr/local/bin/holdfast
# The node runs as the user that PostgreSQL runs as; only a node that runs as root changes users.
USER postgres:postgres
EXPOSE 5432 6432 7400
ENTRYPOINT ["/usr/local/bin/holdfast"]
CMD ["serve", "-c", "/etc/holdfast/holdfast.yaml"]
