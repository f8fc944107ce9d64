package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// unpacked is how long kiln takes to unpack a layer, with one processor and with two.
type unpacked struct {
	fs       string
	one, two []time.Duration
}

// measureUnpack has kiln build on an image with a large layer of npm packages, from a directory on the same machine, on empty roots: with
// one processor and with two in turn, in memory and on the disk.
func measureUnpack(e *env, program string, rounds int, r *report) error {
	base, _, err := e.base("busybox")
	if err != nil {
		return err
	}
	dir, err := e.context("packages", func(dir string) error {
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(testdata, "node"))); err != nil {
			return err
		}
		cmd := exec.CommandContext(e.ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("npm ci: %w\n%s", err, out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	image := filepath.Join(e.memory, "image")
	file, err := e.dockerfile("packages", "FROM "+base+"\nCOPY node_modules /app/node_modules/\n")
	if err != nil {
		return err
	}
	k, err := newKiln(e, "kiln", program)
	if err != nil {
		return err
	}
	k.root = filepath.Join(e.memory, "kiln-root")
	if _, err := k.build(job{dir: dir, dockerfiles: []string{file}, dest: image + ",tar=false"}); err != nil {
		return err
	}
	j := job{contexts: []string{"image=oci-layout://" + image}}
	if j.dir, err = e.file(); err != nil {
		return err
	}
	if file, err = e.dockerfile("unpack", "FROM image\nRUN true\n"); err != nil {
		return err
	}
	j.dockerfiles = []string{file}
	if err := k.forget(); err != nil {
		return err
	}
	for _, place := range []string{e.memory, e.tmp} {
		u := &unpacked{}
		if u.fs, err = fileSystem(place); err != nil {
			return err
		}
		r.unpacked = append(r.unpacked, u)
		k.root = filepath.Join(place, "kiln-root")
		for round := range 2 * rounds {
			if err := errors.Join(k.forget(), pause(e.ctx, settle)); err != nil {
				return err
			}
			processors, times := "0", &u.one
			if round%2 == 1 {
				processors, times = "0,1", &u.two
			}
			k.prefix = []string{"taskset", "--cpu-list", processors}
			syscall.Sync()
			usage, err := k.build(j)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.log, "unpack on %s, processors %s: %v\n", u.fs, processors, usage)
			*times = append(*times, usage.wall)
		}
	}
	return nil
}
