package main

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// floorKey is where a result keeps the floor's figures.
const floorKey = "floor"

// result is what was measured of one workload.
type result struct {
	workload
	floorName string
	runs      map[string][]usage // of each peer
	failed    map[string]error
	took      map[string]time.Duration // by all rounds
}

func newResult(w workload, floorName string) *result {
	return &result{workload: w, floorName: floorName, runs: map[string][]usage{}, failed: map[string]error{}, took: map[string]time.Duration{}}
}

func (r *result) add(name string, u usage) {
	r.runs[name] = append(r.runs[name], u)
}

// spread returns the least, the middle and the greatest of the runs' times, the middle of the processors' times, and the
// greatest memory and size.
func spread(runs []usage) (lo, mid, hi time.Duration, most usage) {
	walls, cpus := make([]time.Duration, len(runs)), make([]time.Duration, len(runs))
	for i, u := range runs {
		walls[i], cpus[i] = u.wall, u.cpu
		most.rss, most.size = max(most.rss, u.rss), max(most.size, u.size)
	}
	slices.Sort(walls)
	slices.Sort(cpus)
	most.cpu = cpus[len(cpus)/2]
	return walls[0], walls[len(walls)/2], walls[len(walls)-1], most
}

// unit is how kiln did with n of something.
type unit struct {
	what string
	n    int
	usage
}

type report struct {
	started  time.Time
	machine  string
	versions []string
	missing  []string
	rounds   int
	results  []*result
	growth   []unit
	cells    []*cell
	unpacked []*unpacked
	odd      []string // what was not as it should be in builds from caches
}

func machine() string {
	var un syscall.Utsname
	_ = syscall.Uname(&un)
	var release []byte
	for _, c := range un.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	model := "unknown"
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var info syscall.Sysinfo_t
	_ = syscall.Sysinfo(&info)
	load, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%d × %s, %d GB, Linux %s, %s, load %s at the start",
		runtime.NumCPU(), model, (uint64(info.Totalram)*uint64(info.Unit)+1<<29)>>30, release, runtime.Version(), first)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// megabytes is empty for what is not known.
func megabytes(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f", float64(n)/(1<<20))
}

func ratio(a, b time.Duration) string {
	if a == 0 || b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", a.Seconds()/b.Seconds())
}

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; %s\n\n", r.started.Format("2006-01-02"), r.machine)
	for _, v := range r.versions {
		fmt.Fprintf(&b, "* %s\n", v)
	}
	for _, m := range r.missing {
		fmt.Fprintf(&b, "* left out: %s\n", strings.Join(strings.Fields(m), " "))
	}
	if len(r.results) > 0 {
		fmt.Fprintf(&b, "\nSeconds of %d rounds at most. The ratio is to kiln's median. "+
			"Memory is the peak of the largest process, or of the daemon.\n\n", r.rounds)
		b.WriteString("| workload | builder | rounds | min | median | max | ratio | MB | CPU s | written MB |\n" +
			"|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
		for _, res := range r.results {
			var kiln time.Duration
			if runs := res.runs["kiln"]; len(runs) > 0 {
				_, kiln, _, _ = spread(runs)
			}
			for _, name := range append([]string{"kiln", beforeName}, peerNames...) {
				if err := res.failed[name]; err != nil {
					fmt.Fprintf(&b, "| %s | %s | cannot: %s |\n", res.name, name, strings.ReplaceAll(lastLine(err), "|", "\\|"))
				}
				if len(res.runs[name]) == 0 {
					continue
				}
				lo, mid, hi, most := spread(res.runs[name])
				cpu := ""
				if most.cpu > 0 {
					cpu = seconds(most.cpu)
				}
				fmt.Fprintf(&b, "| %s | %s | %d | %s | %s | %s | %s | %s | %s | %s |\n",
					res.name, name, len(res.runs[name]), seconds(lo), seconds(mid), seconds(hi), ratio(mid, kiln),
					megabytes(most.rss), cpu, megabytes(most.size))
			}
		}
		b.WriteString("\nkiln against what the machine needs for the work alone:\n\n")
		b.WriteString("| workload | floor | floor s | kiln s | ratio | floor CPU s | kiln CPU s | ratio |\n|---|---|--:|--:|--:|--:|--:|--:|\n")
		for _, res := range r.results {
			if len(res.runs[floorKey]) == 0 || len(res.runs["kiln"]) == 0 {
				continue
			}
			_, floor, _, f := spread(res.runs[floorKey])
			_, kiln, _, k := spread(res.runs["kiln"])
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n",
				res.name, res.floorName, seconds(floor), seconds(kiln),
				ratio(kiln, floor), seconds(f.cpu), seconds(k.cpu), ratio(k.cpu, f.cpu))
		}
	}
	if len(r.growth) > 0 {
		fmt.Fprintf(&b, "\nMedians of %d rounds, kiln alone.\n\n| what | n | seconds | µs each | MB |\n|---|--:|--:|--:|--:|\n", r.rounds)
		for _, u := range r.growth {
			fmt.Fprintf(&b, "| %s | %d | %s | %.1f | %s |\n",
				u.what, u.n, seconds(u.wall), float64(u.wall.Microseconds())/float64(u.n), megabytes(u.rss))
		}
	}
	if len(r.cells) > 0 {
		fmt.Fprintf(&b, "\nMedians of %d rounds; k is kiln, b BuildKit.\n\n", r.rounds)
		b.WriteString("| app | | root | ms | k s | b s | ratio | k MB fetched | b | k MB sent | b | k requests | b |\n" +
			"|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
		for _, c := range r.cells {
			c.write(&b)
		}
		for _, o := range r.odd {
			fmt.Fprintf(&b, "\n* %s", o)
		}
		if len(r.odd) > 0 {
			b.WriteString("\n")
		}
	}
	if len(r.unpacked) > 0 {
		fmt.Fprintf(&b, "\nMedians of %d rounds.\n\n| root | one processor s | two s | ratio |\n|---|--:|--:|--:|\n", r.rounds)
		for _, u := range r.unpacked {
			one, two := median(u.one), median(u.two)
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", u.fs, seconds(one), seconds(two), ratio(one, two))
		}
	}
	return b.String()
}

// write writes a row of the table of caches.
func (c *cell) write(b *strings.Builder) {
	kiln, peer := middle(c.runs["kiln"]), middle(c.runs["buildkit"])
	fmt.Fprintf(b, "| %s | %s | %s | %d | %s | %s | %s |", c.app, c.what, c.fs, c.latency.Milliseconds(),
		seconds(kiln.wall), seconds(peer.wall), ratio(peer.wall, kiln.wall))
	for _, n := range []int64{kiln.fetched, peer.fetched, kiln.sent, peer.sent} {
		fmt.Fprintf(b, " %.3f |", float64(n)/1e6)
	}
	fmt.Fprintf(b, " %d | %d |\n", kiln.requests, peer.requests)
}

// middle returns the medians of runs, each figure for itself.
func middle(runs []cacheRun) (m cacheRun) {
	get := func(of func(cacheRun) int64) int64 {
		all := make([]int64, len(runs))
		for i, r := range runs {
			all[i] = of(r)
		}
		return median(all)
	}
	m.wall = time.Duration(get(func(r cacheRun) int64 { return int64(r.wall) }))
	m.requests = get(func(r cacheRun) int64 { return r.requests })
	m.sent = get(func(r cacheRun) int64 { return r.sent })
	m.fetched = get(func(r cacheRun) int64 { return r.fetched })
	return m
}

// median returns the middle one of some figures, 0 for none.
func median[T cmp.Ordered](all []T) (m T) {
	if len(all) > 0 {
		m = slices.Sorted(slices.Values(all))[len(all)/2]
	}
	return m
}

// lastLine is the part of an error that says most in a table.
func lastLine(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return lines[len(lines)-1]
}
