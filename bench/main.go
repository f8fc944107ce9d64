// Bench measures kiln side by side with the other builders of a machine, and against what the machine itself needs for the
// same bytes, files and processes. It measures and prints; no figure makes it fail.
//
//	go run ./bench [-workload REGEXP] [-peers LIST] [-rounds N] [-budget TIME] [-growth] [-debian] [-million] [-out FILE] [-kiln FILE]
//	    [-before FILE]
//	go run ./bench -cache [-workload REGEXP] [-rounds N] [-export] [-requests FILE] [-out FILE] [-kiln FILE]
//	go run ./bench -unpack [-rounds N] [-out FILE] [-kiln FILE]
//	go run ./bench -gunzip FILE[,FILE...]
//
// README.md in this directory says what the workloads are.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

// env is what all workloads share.
type env struct {
	ctx     context.Context
	tmp     string
	memory  string // a directory in memory, or "" where none is needed
	debian  bool
	million bool
	reg     *registry
	proxy   *proxy // nil until it is needed
	budget  time.Duration
	log     io.Writer
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == floorArg {
		if err := runFloor(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	e := &env{log: os.Stderr}
	pattern := flag.String("workload", "", "only workloads whose name matches this regular expression")
	peers := flag.String("peers", strings.Join(peerNames, ","), "what kiln is compared with")
	rounds := flag.Int("rounds", 5, "counted rounds of each workload; one more goes before and is not counted")
	flag.DurationVar(&e.budget, "budget", 0,
		"stop the rounds of a builder in a workload, after the first that counts, once all of them took this long; 0 is never")
	growth := flag.Bool("growth", false, "measure how kiln's time and memory grow with the size, and nothing else")
	out := flag.String("out", "", "write the tables to this file too, as Markdown")
	kiln := flag.String("kiln", "", "the kiln to measure (default: it is built from this source)")
	before := flag.String("before", "", "the program of another version of kiln, to be measured beside it")
	flag.BoolVar(&e.debian, "debian", false,
		"use a real Debian, made by mmdebstrap and kept from run to run, in place of generated files of its size")
	flag.BoolVar(&e.million, "million", false, "with -growth: a context of a million files as well")
	caches := flag.Bool("cache", false,
		"build applications on empty roots with caches that are filled, and nothing else; -workload chooses rows")
	export := flag.Bool("export", false, "with -cache: export caches in the builds that are measured as well")
	requests := flag.String("requests", "", "with -cache: write the requests of each build to this file")
	unpack := flag.Bool("unpack", false, "measure how fast a large layer is unpacked on one processor and on two, and nothing else")
	gunzip := flag.String("gunzip", "", "measure how fast these gzip files, separated by commas, are decompressed, and nothing else")
	flag.Parse()
	if flag.NArg() > 0 || *rounds < 1 {
		return fmt.Errorf("unknown argument %q, or less than one round", flag.Args())
	}
	wanted, err := regexp.Compile(*pattern)
	if err != nil {
		return err
	}
	if *gunzip != "" {
		return compareGunzip(os.Stdout, strings.Split(*gunzip, ","))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("builders need root")
	}
	// The peak memory of a child is never less than that of the process that started it, so this one stays small.
	debug.SetGCPercent(20)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e.ctx = ctx
	if e.tmp, err = os.MkdirTemp("", "kiln-bench-"); err != nil {
		return err
	}
	defer func() {
		if err := removeAll(e.tmp); err != nil {
			fmt.Fprintln(e.log, "bench: clean up:", err)
		}
	}()
	if *kiln == "" {
		*kiln = filepath.Join(e.tmp, "kiln")
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", *kiln, "./cmd/kiln")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build kiln (run from the top of the source): %w\n%s", err, out)
		}
	}
	if *caches || *unpack {
		if e.memory, err = os.MkdirTemp("/dev/shm", "kiln-bench-"); err != nil {
			return err
		}
		defer func() {
			if err := removeAll(e.memory); err != nil {
				fmt.Fprintln(e.log, "bench: clean up:", err)
			}
		}()
	}
	if e.reg, err = startRegistry(ctx, cmp.Or(e.memory, e.tmp)); err != nil {
		return err
	}
	defer e.reg.stop()

	r := &report{started: time.Now(), machine: machine(), rounds: *rounds}
	switch {
	case *caches:
		err = measureCaches(e, *kiln, wanted, *rounds, *export, *requests, r)
	case *unpack:
		err = measureUnpack(e, *kiln, *rounds, r)
	default:
		err = comparePeers(e, *kiln, *before, strings.Split(*peers, ","), wanted, *rounds, *growth, r)
	}
	text := r.markdown()
	fmt.Print(text)
	if *out != "" {
		if werr := os.WriteFile(*out, []byte(text), 0o644); err == nil {
			err = werr
		}
	}
	return err
}

// comparePeers measures the workloads, or the growth.
func comparePeers(e *env, kiln, before string, peers []string, wanted *regexp.Regexp, rounds int, growth bool, r *report) error {
	k, err := newKiln(e, "kiln", kiln, e.reg.host)
	if err != nil {
		return err
	}
	all := []peer{k}
	if before != "" {
		b, err := newKiln(e, beforeName, before, e.reg.host)
		if err != nil {
			return err
		}
		all = append(all, b)
	}
	if growth {
		err = measureGrowth(e, k, wanted, rounds, r)
	} else {
		for _, name := range peerNames {
			if !slices.Contains(peers, name) {
				continue
			}
			p, err := startPeer(e, name)
			if err != nil {
				r.missing = append(r.missing, fmt.Sprintf("%s: %v", name, err))
				fmt.Fprintf(e.log, "left out: %s: %v\n", name, err)
				continue
			}
			defer p.stop()
			all = append(all, p)
		}
		err = measure(e, all, wanted, rounds, r)
	}
	for _, p := range all {
		r.versions = append(r.versions, p.name()+": "+p.version())
	}
	return err
}

// removeAll removes a directory in which other builders may have left mounts.
func removeAll(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, line := range slices.Backward(strings.Split(string(mounts), "\n")) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH) // what stays mounted cannot be removed, and is then named
		}
	}
	return os.RemoveAll(dir)
}

// measure runs the workloads: in each round every builder does the same, one after the other, beginning with another one
// each time.
func measure(e *env, peers []peer, wanted *regexp.Regexp, rounds int, r *report) error {
	for _, w := range workloads {
		if !wanted.MatchString(w.name) {
			continue
		}
		fmt.Fprintf(e.log, "%s: making the input\n", w.name)
		t, err := w.prepare(e)
		if err == errNeedsDebian {
			fmt.Fprintf(e.log, "%s: left out: %v\n", w.name, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		res := newResult(w, t.floorName)
		contestants := slices.Clone(peers)
		for round := range rounds + 1 {
			if t.before != nil {
				if err := t.before(round); err != nil {
					return fmt.Errorf("%s: %w", w.name, err)
				}
			}
			contestants = slices.DeleteFunc(contestants, func(p peer) bool {
				return res.failed[p.name()] != nil || round > 1 && e.budget > 0 && res.took[p.name()] > e.budget
			})
			if len(contestants) == 0 {
				break
			}
			if err := forget(e, contestants, func(p peer) job { return t.job(round, p.name()) }); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			for i := range contestants {
				p := contestants[(i+round)%len(contestants)]
				u, err := timed(e, p, t.job(round, p.name()))
				res.took[p.name()] += u.wall
				if e.ctx.Err() != nil {
					return context.Cause(e.ctx)
				}
				if err != nil {
					res.failed[p.name()] = err
					fmt.Fprintf(e.log, "%s: %s: %v\n", w.name, p.name(), err)
					continue
				}
				fmt.Fprintf(e.log, "%s: round %d: %s: %v\n", w.name, round, p.name(), u)
				if round > 0 {
					res.add(p.name(), u)
				}
			}
			if t.floor != nil {
				u, err := t.floor()
				if err != nil {
					return fmt.Errorf("%s: %s: %w", w.name, t.floorName, err)
				}
				fmt.Fprintf(e.log, "%s: round %d: %s: %v\n", w.name, round, t.floorName, u)
				if round > 0 {
					res.add(floorKey, u)
				}
			}
		}
		r.results = append(r.results, res)
	}
	return nil
}

// settle is how long it takes until ext4 looks no longer at the inodes of files that were deleted. Until then each new file is a
// search past all of them (recently_deleted in the kernel's fs/ext4/ialloc.c), which is the cost of the deletion, and not of what
// is measured.
const settle = 6 * time.Second

// forget empties the stores of those who are to begin without one.
func forget(e *env, peers []peer, job func(peer) job) error {
	emptied := false
	for _, p := range peers {
		if !job(p).cold {
			continue
		}
		if err := p.forget(); err != nil {
			return fmt.Errorf("empty the store of %s: %w", p.name(), err)
		}
		emptied = true
	}
	if !emptied {
		return nil
	}
	return pause(e.ctx, settle)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// timed does one job and measures it. What others left to be written is written before.
func timed(e *env, p peer, j job) (usage, error) {
	e.reg.sweep()
	syscall.Sync()
	debug.FreeOSMemory()
	u, err := p.build(j)
	if err == nil && j.dest != "" {
		var info os.FileInfo
		if info, err = os.Stat(j.dest); err == nil {
			u.size = info.Size()
		}
		os.Remove(j.dest)
	}
	return u, err
}
