package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usage is what one run took.
type usage struct {
	wall time.Duration
	cpu  time.Duration // of the processes that were started, not of daemons
	rss  int64         // peak resident memory in bytes, of the largest process or the daemon
	size int64         // of the file that was written
}

func (u usage) String() string {
	s := fmt.Sprintf("%.3f s", u.wall.Seconds())
	if u.cpu > 0 {
		s += fmt.Sprintf(", cpu %.3f s", u.cpu.Seconds())
	}
	if u.rss > 0 {
		s += fmt.Sprintf(", %d MB", u.rss>>20)
	}
	if u.size > 0 {
		s += fmt.Sprintf(", wrote %d MB", u.size>>20)
	}
	return s
}

// execute runs a command to its end and measures it.
func execute(ctx context.Context, environ []string, args ...string) (usage, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), environ...)
	// A builder is asked to end, so that it can clean up, and killed if it does not.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	err := cmd.Run()
	u := usage{wall: time.Since(start)}
	if err != nil {
		text := out.Bytes()
		if len(text) > 2000 {
			text = text[len(text)-2000:]
		}
		return u, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, text)
	}
	u.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	u.rss = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	return u, nil
}

// together runs several things at once: the time is that of all, the processors' time the sum, the memory the largest.
func together(n int, f func(i int) (usage, error)) (usage, error) {
	type one struct {
		usage
		err error
	}
	results := make(chan one, n)
	start := time.Now()
	for i := range n {
		go func() {
			u, err := f(i)
			results <- one{u, err}
		}()
	}
	var sum usage
	var err error
	for range n {
		o := <-results
		sum.cpu += o.cpu
		sum.rss = max(sum.rss, o.rss)
		if err == nil {
			err = o.err
		}
	}
	sum.wall = time.Since(start)
	return sum, err
}

// resetPeak makes the kernel forget a process's peak memory.
func resetPeak(pid int) { _ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) }

// peak returns a running process's peak memory in bytes.
func peak(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}
