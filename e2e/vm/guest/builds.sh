# Builds as root: a root of more than 64 layers ($LAYERS for less), whiteouts, and each type of mount.
layers=${LAYERS:-64}
export KILN_ROOT=$PWD/root KILN_PROGRESS=plain
kiln doctor
mkdir context && cp /bin/busybox context && cd context
{
    echo 'FROM scratch AS base'
    echo 'COPY busybox /bin/'
    echo 'RUN ["/bin/busybox", "--install", "-s", "/bin"]'
    echo 'RUN mkdir -p /tree/gone /tree/kept && touch /tree/gone/a /tree/kept/a /tree/kept/b'
    for n in $(seq $layers); do echo "RUN echo $n > /layer$n"; done
    cat <<'F'
RUN test "$(ls -d /layer* | wc -l)" = LAYERS && test "$(cat /layer1)" = 1 && test "$(cat /layerLAYERS)" = LAYERS
RUN rm -r /tree/gone /tree/kept/a /layer1 && mkdir /tree/gone && touch /tree/gone/b
RUN test "$(ls /tree/gone)" = b && test "$(ls /tree/kept)" = b && test ! -e /layer1

FROM base
RUN --mount=type=bind,from=base,source=/tree,target=/ro test -e /ro/kept/b && ! touch /ro/x 2>/dev/null
RUN --mount=type=bind,from=base,source=/tree,target=/rw,rw touch /rw/x && test -e /rw/kept/b
RUN --mount=type=bind,source=.,target=/context cmp /context/busybox /bin/busybox
RUN --mount=type=cache,target=/cache echo first > /cache/file
RUN --mount=type=cache,target=/cache test "$(cat /cache/file)" = first
RUN --mount=type=tmpfs,target=/memory touch /memory/file
RUN --mount=type=secret,id=token test "$(cat /run/secrets/token)" = hidden
RUN --network=none ! ping -c 1 -W 1 127.0.0.2 2>&1 | grep unreachable
RUN test ! -e /tree/x && test ! -e /memory/file && test ! -e /run/secrets/token && rm /layer2
F
} | sed "s/LAYERS/$layers/g" > Dockerfile
echo hidden > ../token
kiln build -t app --secret id=token,src=../token . 2> ../first.log || { cat ../first.log; exit 1; }
kiln build -t app --secret id=token,src=../token . 2> ../log
test "$(grep -c CACHED ../log)" -ge $((layers + 11))
kiln build -o ../out --secret id=token,src=../token . 2> ../log
test "$(ls ../out/tree/gone ../out/tree/kept | tr -d '\n')" = ../out/tree/gone:b../out/tree/kept:b
test ! -e ../out/layer2 && test -e ../out/layer3
! grep " $KILN_ROOT" /proc/self/mountinfo
