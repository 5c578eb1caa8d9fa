# An image that carries a whole installation: the daemon and the launcher in PREFIX, a built guest, and the packages pods need.
# Run with a node's root mounted at /node it installs itself there; docs/operations.md says how, and what the node must have.

# --- the wheel: daemon, launcher, the guest's programs ---------------------------------------------------------------
FROM rust:1.87-slim-bookworm AS wheel
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY launcher launcher
COPY guest guest
COPY kata_shimd kata_shimd
RUN python3 -m venv /build && /build/bin/pip wheel --no-deps --wheel-dir /wheel .

# --- the installation ------------------------------------------------------------------------------------------------
FROM debian:12-slim
ARG PREFIX=/opt/kata-shimd
ENV PREFIX=${PREFIX} LC_ALL=C.UTF-8
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        qemu-system-x86 \
        squashfs-tools \
        iproute2 \
        util-linux \
        python3 \
        python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /usr/bin/python3 -m venv "$PREFIX" \
    && "$PREFIX/bin/pip" install --no-compile --no-cache-dir /wheel/*.whl \
    && "$PREFIX/bin/python3" -m compileall -q "$PREFIX/lib" \
    && ln -s "$PREFIX/bin/kata-shimd" "$PREFIX/bin/containerd-shim-kata-v2" /usr/local/bin/
RUN apt-get update \
    && kata-shimd guest build --cache /tmp/guest-cache \
    && rm -rf /tmp/guest-cache /var/lib/apt/lists/*

# The links come last: containerd finds the new version only when all of it is there.
CMD ["/bin/sh", "-euc", "\
    test -d /node/etc || { echo 'install: /node: not a root file system; run with --volume /:/node' >&2; exit 1; }; \
    test ! -e \"/node$PREFIX\" || { echo \"install: $PREFIX: is there already; build with another --build-arg PREFIX\" >&2; exit 1; }; \
    mkdir -p \"/node$(dirname \"$PREFIX\")\" /node/var/lib/kata-shimd /node/usr/local/bin; \
    cp -a \"$PREFIX\" \"/node$PREFIX\"; \
    cp -a /var/lib/kata-shimd/. /node/var/lib/kata-shimd/; \
    ln -sfn \"$PREFIX/bin/kata-shimd\" \"$PREFIX/bin/containerd-shim-kata-v2\" /node/usr/local/bin/; \
    exec chroot /node kata-shimd check"]
