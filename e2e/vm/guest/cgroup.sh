# Limits of steps in control groups of version 2.
export KILN_ROOT=$PWD/root KILN_PROGRESS=plain
top=/sys/fs/cgroup
cat $top/cgroup.controllers
left() { ! find $top -name 'kiln-*' | grep .; }
tests() { (cd /src/sandbox && ./test -test.v -test.timeout 60m -test.run '^Test(CgroupParent|Limits|Sweep)$' > /tmp/out 2>&1 || { cat /tmp/out; false; }); }
mkdir context && cp /bin/busybox context && cd context
cat > Dockerfile <<'F'
FROM scratch
COPY busybox /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]
ARG DO
RUN eval "$DO"
F
build() { kiln build --network=host -q --build-arg DO="$1" $FLAGS . > /tmp/log 2>&1; }
fails() { if FLAGS="$2" build "$1"; then cat /tmp/log; echo "no error: $1 $2"; false; fi; grep -q "$3" /tmp/log || { cat /tmp/log; false; }; }

echo "== at the top"
tests
left
fails 'dd if=/dev/zero of=/dev/null bs=300M count=1' '-m 32m --memory-swap 32m' 'out of memory (limit 32MiB'

echo "== in a group with processes"
mkdir $top/session
sh -e -c "echo \$\$ > $top/session/cgroup.procs; cd /src/sandbox; ./test -test.v -test.timeout 60m -test.run '^Test(CgroupParent|Limits|Sweep)$'" > /tmp/out 2>&1 || { cat /tmp/out; false; }
left
cat $top/session/cgroup.type $top/session/cgroup.subtree_control
test "$(cat $top/session/cgroup.type)" = domain

echo "== in a group that has a limit"
echo 1G > $top/session/memory.max
echo $$ > $top/session/cgroup.procs
fails true '-m 64m' 'has a limit\|has processes, and a limit'
cat /tmp/log | head -1
fails 'for i in $(seq 100); do sleep 10000 & done' '--pids-limit 20' 'as many processes and threads'
fails true '--cpuset-cpus 77' 'limit the step.s cpuset'
FLAGS="--pids-limit 30 --cpuset-cpus 0 --cpu-shares 512 --cpu-quota 50000" build 'test $(nproc) = 1' || { cat /tmp/log; false; }
left
FLAGS="-m 64m --cgroup-parent /builds" build 'echo 2' || { cat /tmp/log; false; }
left

echo "== kill"
kiln build -q --network=host --build-arg DO='sleep 10000' . > /dev/null 2>&1 &
pid=$!
while ! pidof sleep > /dev/null; do sleep 0.2; done
find $top -name 'kiln-*' | grep . 
kill -9 $pid; wait $pid || true
printf 'FROM scratch\nCOPY Dockerfile /\n' > small
kiln build -q -f small . > /tmp/log 2>&1 || { cat /tmp/log; false; }
left

echo "== a user namespace"
if ! FLAGS="--userns=100000:65536" build 'test $(id -u) = 0 && echo 4'; then grep 'the kernel cannot map the ids of the files of layers: Linux 6.15 or later is needed' /tmp/log || { cat /tmp/log; false; }; fi

echo "== an ordinary user"
echo $$ > $top/cgroup.procs
FLAGS= ; chmod 755 $PWD/.. 
su user -c "cd $PWD && KILN_ROOT=/home/user/root kiln build --network=host --pids-limit 20 --build-arg DO=true ." > /tmp/log 2>&1 && { cat /tmp/log; false; }
grep 'limit the step' /tmp/log || { cat /tmp/log; false; }
mkdir -p $top/user && chown -R user $top/user
echo $$ > $top/user/cgroup.procs
su user -c "cd $PWD && KILN_ROOT=/home/user/root kiln build --network=host --pids-limit 20 --build-arg DO=true ." > /tmp/log 2>&1 || { cat /tmp/log; false; }
left
