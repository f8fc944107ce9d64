package sandbox

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"
)

// BenchmarkRun runs /bin/true in an overlay of its own each time, in a kiln of various sizes.
func BenchmarkRun(b *testing.B) {
	for _, c := range []struct {
		name    string
		heap    int
		network NetworkMode
		limits  Limits
	}{
		{name: "default"},
		{name: "heap=200MB", heap: 200},
		{name: "network=none", network: NetworkNone},
		{name: "network=join", network: NetworkJoin},
		{name: "pids=none", limits: Limits{Pids: -1}},
		{name: "memory", limits: Limits{Memory: 1 << 30}},
	} {
		b.Run(c.name, func(b *testing.B) {
			ballast := make([]byte, c.heap<<20)
			for i := range ballast {
				ballast[i] = byte(i)
			}
			im, pool := newImage(b), newPool(b)
			var times []time.Duration
			for b.Loop() {
				for _, d := range []string{im.upper, im.work} {
					b.StopTimer()
					if err := os.RemoveAll(d); err != nil {
						b.Fatal(err)
					}
					if err := os.Mkdir(d, 0o755); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				start := time.Now()
				root := im.mount(b)
				s := Spec{Root: root, Process: Process{Args: []string{"/bin/true"}, Env: []string{defaultPath}}, Network: Network{Mode: c.network}, Resources: Resources{Limits: c.limits}}
				release := func() {}
				if c.network == NetworkJoin {
					n, err := pool.Get()
					if err != nil {
						b.Fatal(err)
					}
					s.Network.Namespace, release = n.Namespace(), func() { n.Release(false) }
				}
				st, err := Run(context.Background(), s)
				release()
				root.Close()
				times = append(times, time.Since(start))
				if err != nil || st.ExitCode != 0 {
					b.Fatal(st, err)
				}
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "median-µs")
			b.ReportMetric(float64(times[0].Microseconds()), "min-µs")
			_ = ballast[len(ballast)/2:]
		})
	}
}
