package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// measureGrowth builds the same in several sizes with kiln, to see whether what one unit costs stays the same.
func measureGrowth(e *env, k peer, wanted *regexp.Regexp, rounds int, r *report) error {
	files := []int{10000, 100000}
	if e.million {
		files = append(files, 1000000)
	}
	lines := []int{100, 1000, 10000, 20000} // more are more history than an image's configuration may have
	for _, g := range []struct {
		name  string
		sizes []int
		task  func(n int) (*task, error)
	}{
		{"noop, files", files, func(n int) (*task, error) { return e.edit("noop", n) }},
		{"edit, files", files, func(n int) (*task, error) { return e.edit("edit", n) }},
		{"chain, steps", []int{10, 100, 1000}, e.chain},
		{"fan, stages", []int{10, 100, 1000}, func(n int) (*task, error) { return e.fan(n, "true") }},
		{"layers", []int{1, 10, 100, maxLayers}, e.layers},
		{"ENV, lines", lines, func(n int) (*task, error) { return e.lines("ENV", n, "ENV A%d=%d\n") }},
		{"ARG, lines", lines, func(n int) (*task, error) { return e.lines("ARG", n, "ARG A%d=%d\n") }},
		{"WORKDIR, lines", lines, func(n int) (*task, error) { return e.lines("WORKDIR", n, "WORKDIR /a\n") }},
		{"ONBUILD, triggers", lines, e.triggers},
		{"ADD, nested directories", []int{10, 100, 1000, 2000}, e.nested},
	} {
		if !wanted.MatchString(g.name) {
			continue
		}
		for _, n := range g.sizes {
			fmt.Fprintf(e.log, "%s: %d\n", g.name, n)
			t, err := g.task(n)
			if err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			var runs []usage
			for round := range rounds + 1 {
				if t.before != nil {
					if err := t.before(round); err != nil {
						return err
					}
				}
				u, err := timed(e, k, t.job(round, k.name()))
				if e.ctx.Err() != nil {
					return context.Cause(e.ctx)
				}
				if err != nil {
					return fmt.Errorf("%s: %d: %w", g.name, n, err)
				}
				fmt.Fprintf(e.log, "%s: %d: %v\n", g.name, n, u)
				if round > 0 {
					runs = append(runs, u)
				}
			}
			_, mid, _, most := spread(runs)
			r.growth = append(r.growth, unit{g.name, n, usage{wall: mid, rss: most.rss}})
		}
	}
	return nil
}

// maxLayers is close to the number of layers that a root can have, with those of the base image.
const maxLayers = 400

// layers is a Dockerfile of layers with a file each, a step that sees all of them, and an image of them.
func (e *env) layers(n int) (*task, error) {
	base, _, err := e.base("busybox")
	if err != nil {
		return nil, err
	}
	dir, err := e.context("layers", func(dir string) error {
		for i := range maxLayers {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d", i)), fmt.Appendf(nil, "%d\n", i), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("FROM " + base + "\n")
	for i := range n {
		fmt.Fprintf(&b, "COPY file%d /layers/\n", i)
	}
	b.WriteString("RUN ls /layers > /list\n")
	file, err := e.dockerfile(fmt.Sprintf("layers%d", n), b.String())
	if err != nil {
		return nil, err
	}
	j := job{dir: dir, dockerfiles: []string{file}, noCache: true, dest: filepath.Join(e.tmp, "layers.tar")}
	return &task{job: func(int, string) job { return j }}, nil
}

// lines is a Dockerfile of n instructions, in each of which %d is its number.
func (e *env) lines(name string, n int, format string) (*task, error) {
	var b strings.Builder
	b.WriteString("FROM scratch\nCOPY file /\n")
	for i := range n {
		b.WriteString(strings.ReplaceAll(format, "%d", strconv.Itoa(i)))
	}
	return e.simple(fmt.Sprintf("%s%d", name, n), b.String(), job{})
}

// triggers is a stage that runs n triggers of its base.
func (e *env) triggers(n int) (*task, error) {
	var b strings.Builder
	b.WriteString("FROM scratch AS base\n")
	for i := range n {
		fmt.Fprintf(&b, "ONBUILD ENV A%d=%d\n", i, i)
	}
	return e.simple(fmt.Sprintf("triggers%d", n), b.String()+"FROM base\nCOPY file /\n", job{})
}

// nested is an ADD of an archive of n directories, each in the one before.
func (e *env) nested(n int) (*task, error) {
	dir, err := e.context(fmt.Sprintf("nested%d", n), func(dir string) error {
		f, err := os.Create(filepath.Join(dir, "archive.tar"))
		if err != nil {
			return err
		}
		w := tar.NewWriter(f)
		for i := range n {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.Repeat("d/", i+1), Mode: 0o755}); err != nil {
				return err
			}
		}
		return errors.Join(w.Close(), f.Close())
	})
	if err != nil {
		return nil, err
	}
	file, err := e.dockerfile("nested", "FROM scratch\nADD archive.tar /\n")
	if err != nil {
		return nil, err
	}
	j := job{dir: dir, dockerfiles: []string{file}, noCache: true}
	return &task{job: func(int, string) job { return j }}, nil
}
