package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// measureGrowth builds the same in several sizes with kiln, to see whether what one unit costs stays the same.
func measureGrowth(e *env, k peer, wanted *regexp.Regexp, rounds int, r *report) error {
	files := []int{10000, 100000}
	if e.million {
		files = append(files, 1000000)
	}
	for _, g := range []struct {
		name  string
		sizes []int
		task  func(n int) (*task, error)
	}{
		{"noop, files", files, func(n int) (*task, error) { return e.edit("noop", n) }},
		{"edit, files", files, func(n int) (*task, error) { return e.edit("edit", n) }},
		{"chain, steps", []int{10, 100, 1000}, e.chain},
		{"fan, stages", []int{10, 100, 1000}, func(n int) (*task, error) { return e.fan(n, "true") }},
		{"layers", []int{1, 10, 100, 400, maxLayers}, e.layers},
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

// maxLayers is more than the kernel stacks in one overlay.
const maxLayers = 600

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
