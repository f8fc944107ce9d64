// Package kilntest holds what tests of a whole kiln share: a base image, and a look at what a build leaves behind. It
// knows kiln's root directory from outside, as a user does.
package kilntest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"golang.org/x/sys/unix"
)

// Base makes an OCI layout in dir that holds one image of one layer: the machine's static busybox, with a shell.
func Base(dir string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w: install busybox-static", err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, data string) {
		h.ModTime, h.Size = time.Unix(1000000000, 0), int64(len(data))
		err = errors.Join(err, tw.WriteHeader(&h))
		if err == nil {
			_, err = io.WriteString(tw, data)
		}
	}
	for _, d := range []string{"bin/", "etc/", "root/", "tmp/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}, "")
	}
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n")
	add(tar.Header{Name: "etc/group", Mode: 0o644}, "root:x:0:\nuser:x:1000:\n")
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, string(program))
	for applet := range strings.FieldsSeq(string(out)) {
		if applet != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, "")
		}
	}
	if err := errors.Join(err, tw.Close()); err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config = v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}))
}

// Leftovers returns what finished commands have left behind in the root directory, and on the machine because of it, in
// words: unfinished files, locks, mounts, and processes whose environment or command line holds one of the marks. The
// root's own path is always one.
func Leftovers(root string, marks ...string) ([]string, error) {
	var left []string
	for _, dir := range []string{"tmp", "locks"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			// The lock of the list of images is a file that stays.
			if dir != "locks" || e.Name() != "index" {
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], root+"/") {
			left = append(left, "mount "+f[4])
		}
	}
	processes, err := Processes(append(marks, root)...)
	return append(left, processes...), err
}

// DeadGroups returns the control groups of kilns that live no more: those whose lock nobody holds, and goes on holding none.
func DeadGroups() []string {
	find := func() (dead []string) {
		for _, pattern := range []string{"", "*/", "*/*/", "*/*/*/"} {
			found, _ := filepath.Glob("/sys/fs/cgroup/" + pattern + "kiln-" + strings.Repeat("[0-9a-f]", 16)) // the pattern is well-formed
			for _, dir := range found {
				f, err := os.Open(dir)
				if err != nil {
					continue // gone
				}
				if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
					dead = append(dead, dir)
				}
				f.Close()
			}
		}
		return dead
	}
	first := find()
	if len(first) == 0 {
		return nil
	}
	// One that was just made gets its lock a moment later.
	time.Sleep(100 * time.Millisecond)
	again := find()
	return slices.DeleteFunc(first, func(dir string) bool { return !slices.Contains(again, dir) })
}

// Processes returns, in words, the processes that Marked returns.
func Processes(marks ...string) ([]string, error) {
	pids, err := Marked(marks...)
	return describe(pids), err
}

// Marked returns the numbers of the processes whose environment or command line holds one of the marks, but for the caller's own
// ancestors. One that has begun to end has neither, though it may still have files open: see WaitGone.
func Marked(marks ...string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	own := ancestors()
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.Contains(own, pid) {
			continue
		}
		// A process may end while it is looked at.
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		holds := func(mark string) bool {
			return bytes.Contains(environ, []byte(mark)) || bytes.Contains(cmdline, []byte(mark))
		}
		if slices.ContainsFunc(marks, holds) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func describe(pids []int) (words []string) {
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may have ended by now
		words = append(words, fmt.Sprintf("process %d %q", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	}
	return words
}

// ended reports whether all threads of a process have ended, and with them its open files and locks, whether or not its parent has
// waited for it: see proc_pid_stat(5).
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const state, threads = 0, 17
	return strings.Contains("ZX", f[state]) && f[threads] <= "1"
}

func ancestors() (pids []int) {
	for pid := os.Getpid(); pid > 1; {
		pids = append(pids, pid)
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return pids
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if pid, err = strconv.Atoi(f[1]); err != nil {
			return pids
		}
	}
	return pids
}

// Hang is far longer than anything takes that a test waits for, on a machine with much else to do: what is not there by then
// hangs. It is no measure of speed, and what must not be taken for an end has to last longer.
const Hang = 5 * time.Minute

// WaitGone waits until no process holds one of the marks, and the processes with the numbers known, which Marked returned before, have
// ended. It returns those that are still there after Hang, in words.
func WaitGone(known []int, marks ...string) ([]string, error) {
	for deadline := time.Now().Add(Hang); ; time.Sleep(5 * time.Millisecond) {
		known = slices.DeleteFunc(known, ended)
		marked, err := Marked(marks...)
		left := append(slices.Clone(known), marked...)
		if err != nil || len(left) == 0 || time.Now().After(deadline) {
			return describe(left), err
		}
	}
}

// TreeDigest returns a digest of everything in a tar but times.
func TreeDigest(r io.Reader) (string, error) {
	h := sha256.New()
	tr := tar.NewReader(bufio.NewReaderSize(r, 1<<16))
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%q %c %o %d:%d %d %q %d:%d\n",
			hdr.Name, hdr.Typeflag, hdr.Mode, hdr.Uid, hdr.Gid, hdr.Size, hdr.Linkname, hdr.Devmajor, hdr.Devminor)
		if _, err := io.Copy(h, tr); err != nil {
			return "", err
		}
	}
}

// Validate checks every byte of an image against the digests that stand for it. It is go-containerregistry's own
// validation where all layers are compressed by gzip, which that takes for granted, and as much of it as that allows else.
func Validate(img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	plain := func(d v1.Descriptor) bool { return d.MediaType == types.OCIUncompressedLayer }
	if !slices.ContainsFunc(m.Layers, plain) {
		return validate.Image(img)
	}
	if err := validate.Image(img, validate.Fast); err != nil {
		return err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if len(cfg.RootFS.DiffIDs) != len(layers) || len(m.Layers) != len(layers) {
		return fmt.Errorf("%d layers, and %d diff ids", len(layers), len(cfg.RootFS.DiffIDs))
	}
	for i, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		h := sha256.New()
		n, err := io.Copy(h, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
		got := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
		if got != m.Layers[i].Digest || n != m.Layers[i].Size {
			return fmt.Errorf("layer %d is %s with %d bytes, and the manifest says %s with %d", i, got, n, m.Layers[i].Digest, m.Layers[i].Size)
		}
		if plain(m.Layers[i]) && cfg.RootFS.DiffIDs[i] != got {
			return fmt.Errorf("layer %d is %s, and the config says %s", i, got, cfg.RootFS.DiffIDs[i])
		}
	}
	return nil
}

// Before reports whether the kernel is older than a version.
func Before(major, minor int) bool {
	var u unix.Utsname
	var is [2]int
	if unix.Uname(&u) != nil {
		return true
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &is[0], &is[1]); err != nil {
		return true
	}
	return is[0] < major || is[0] == major && is[1] < minor
}
