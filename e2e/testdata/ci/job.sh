#!/bin/sh
# What a CI job does with docker: it builds an image and those of a compose file, looks at them, tries them, pushes them to a registry that
# wants a password, carries them to another machine in an archive, and cleans up. Nothing in it is written for kiln.
#
#	REGISTRY_PASSWORD=… job.sh REGISTRY USER VERSION
set -eu
registry=$1 user=$2 version=$3
image=$registry/team/greeter
cd "$(dirname "$0")"

say() { echo "== $*"; }
fail() { echo "job.sh: $*" >&2; exit 1; }
wants() { [ "$2" = "$3" ] || fail "$1 is '$2', and should be '$3'"; }

docker version

say login
echo "$REGISTRY_PASSWORD" | docker login --username "$user" --password-stdin "$registry"

say build
docker build --pull --build-arg VERSION="$version" --label org.example.commit=abc123 --target final --tag greeter:ci --file Dockerfile .
id=$(docker build -q --build-arg VERSION="$version" --label org.example.commit=abc123 --target final -t greeter:ci .)
wants "the ID of the image" "$(docker inspect --format '{{.Id}}' greeter:ci)" "$id"
wants "the label" "$(docker image inspect -f '{{index .Config.Labels "org.example.commit"}}' greeter:ci)" abc123
wants "the program" "$(docker inspect -f '{{json .Config.Entrypoint}} {{.Config.User}} {{.Os}}/{{.Architecture}}' "$id")" \
    "[\"/usr/local/bin/greet\"] nobody linux/$(dpkg --print-architecture)"
docker history --no-trunc --format '{{.CreatedBy}}' greeter:ci | grep -q 'USER nobody' || fail "the history has no USER"
docker images --filter label=org.example.commit=abc123 --format '{{.Repository}}:{{.Tag}}' | grep -qx greeter:ci || fail "the image is not listed"
[ -n "$(docker images -q greeter:ci)" ] || fail "the image has no short ID"

say run
wants "the greeting" "$(docker run --rm greeter:ci)" "hello world, this is $version"
wants "the greeting with an argument" "$(docker run --rm "$id" docker)" "hello docker, this is $version"
wants "the user" "$(docker run --rm --entrypoint id greeter:ci -un)" nobody
wants "the output" "$(docker run --rm --entrypoint sh greeter:ci -c 'echo out; echo err >&2' 2> errors)" out
wants "the error output" "$(cat errors)" err
status=0
docker run --rm --entrypoint sh greeter:ci -c 'exit 42' || status=$?
wants "the exit status" "$status" 42
status=0
docker run --rm --entrypoint /no/such/program greeter:ci 2> errors || status=$?
wants "the exit status without a program" "$status" 127
export TOKEN='a "b" $c'
wants "the environment" "$(docker run --rm -e TOKEN -e MODE=test --env ROUND=2 debian:bookworm sh -c 'echo "$TOKEN, $MODE $ROUND"')" "$TOKEN, test 2"
wants "the end of a pipe" "$(printf 'b\na\n' | docker run --rm -i debian:bookworm sort | tr '\n' ' ')" "a b "

say run in the source
mkdir -m 755 results
docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/src:ro" -v "$PWD/results:/results" -w /src --network none debian:bookworm \
    sh -euc 'sha256sum greet.sh > /results/sums; if touch greet.sh; then exit 1; fi; pwd > /results/pwd'
sha256sum --check results/sums
wants "the working directory" "$(cat results/pwd)" /src
wants "the owner of the results" "$(stat -c %u:%g results/sums)" "$(id -u):$(id -g)"
docker run --rm debian:bookworm cat /etc/debian_version > version
[ -s version ] || fail "the output was not redirected"
if docker run --rm -v "$PWD:/src" -w /src debian:bookworm grep -q '@NOTHING@' greet.sh; then
    fail "grep has found what is not there"
fi

say tag and push
for tag in "$version" latest; do
    docker tag greeter:ci "$image:$tag"
    docker push "$image:$tag"
done
docker inspect --format '{{index .RepoDigests 0}}' "$image:$version" | grep -q '@sha256:' || fail "the pushed image has no digest"

say compose
REGISTRY=$registry VERSION=$version docker compose --file compose.yaml build
docker image inspect "$registry/team/worker:$version" > /dev/null
wants "the role" "$(docker run --rm "$registry/team/worker:$version" cat /role)" worker

say save, remove and load
docker save --output greeter.tar greeter:ci "$image:$version"
docker save greeter:ci | gzip > greeter.tar.gz
docker rmi greeter:ci "$image:$version" "$image:latest"
! docker image inspect greeter:ci > /dev/null 2>&1 || fail "the image is still there"
docker load --input greeter.tar
wants "the loaded image" "$(docker inspect -f '{{.Id}}' greeter:ci)" "$id"
docker rmi -f greeter:ci "$image:$version"
docker load < greeter.tar.gz
wants "the image of standard input" "$(docker inspect -f '{{.Id}}' greeter:ci)" "$id"

say pull
docker rmi greeter:ci
docker pull --quiet "$image:$version"
wants "the pulled image" "$(docker inspect -f '{{.Id}}' "$image:$version")" "$id"
docker rmi "$image:$version"
wants "the greeting of what run has pulled" "$(docker run --rm "$image:$version" again)" "hello again, this is $version"

say clean up
docker image rm "$image:$version" "$registry/team/worker:$version"
docker image prune --force
docker builder prune --force
docker system df
docker logout "$registry"
if docker pull "$image:$version" 2> refused; then
    fail "the registry gives its images to everybody"
fi
say done
