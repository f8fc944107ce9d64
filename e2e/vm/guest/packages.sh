# The packages' own tests: of some a choice, since the machine is an emulated one.
uname -a
for p in internal/mount snapshot sandbox; do
    cd /src/$p
    choice=.
    [ $p != snapshot ] || choice='TestChanges|TestUnpack'
    [ $p != sandbox ] || choice='TestCgroup|TestExec|TestLauncher|TestLimits|TestMounts|TestNetwork|TestOnly|TestOwnNamespaces|TestPlan|TestProcess|TestSeccomp|TestStatus'
    ./test -test.timeout 60m -test.run "$choice" || { echo "$p failed"; exit 1; }
    echo "$p: done after $(cut -d' ' -f1 /proc/uptime) seconds"
done
