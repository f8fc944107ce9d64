# The packages' own tests. Those that say how long something may take, or take long themselves, are left out: the machine is an
# emulated one.
uname -a
for p in internal/mount snapshot sandbox; do
    cd /src/$p
    ./test -test.timeout 3m -test.v -test.skip 'HostileUserFiles|Bench|ForkBomb|Fuzz' > /tmp/out 2>&1 || { cat /tmp/out; echo "$p failed"; exit 1; }
    grep -E '^--- .*\([1-9][0-9]*\.' /tmp/out || true
    echo "$p: done after $(cut -d' ' -f1 /proc/uptime) seconds"
done
