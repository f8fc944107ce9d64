# The packages' own tests: of some a choice, since the machine is an emulated one.
uname -a
for p in internal/mount snapshot sandbox; do
    cd /src/$p
    choice=.
    [ $p != snapshot ] || choice='TestChanges|TestUnpack'
    [ $p != sandbox ] || choice='TestCgroup|TestLimits|TestMounts|TestOwnNamespaces|TestProcess|TestSeccomp|TestStatus'
    ./test -test.timeout 3m -test.run "$choice" || { echo "$p failed"; exit 1; }
    echo "$p: done after $(cut -d' ' -f1 /proc/uptime) seconds"
done
