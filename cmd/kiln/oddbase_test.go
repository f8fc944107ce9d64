package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"
)

// oddLayer returns a layer of files, in order; a content that begins with -> is a hard link.
func oddLayer(files ...[2]string) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}
		body := f[1]
		if len(body) > 2 && body[:2] == "->" {
			h.Typeflag, h.Linkname, h.Size, body = tar.TypeLink, body[2:], 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
}

// cmdOddbase makes an OCI layout with an image of two layers that is odd in some way: "oddbase KIND DIR".
func cmdOddbase(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: oddbase KIND DIR")
	}
	kind, dir := args[0], ts.MkAbs(args[1])
	ts.Check(oddbase(kind, dir))
}

func oddbase(kind, dir string) error {
	files := [][2]string{{"b", "second"}}
	if kind == "aufs" {
		files = append(files, [2]string{".wh..wh.aufs", ""}, [2]string{".wh..wh.plnk/1.2", "linked\n"}, [2]string{"c", "->.wh..wh.plnk/1.2"})
	}
	first, err := oddLayer([2]string{"a", "first"})
	if err != nil {
		return err
	}
	second, err := oddLayer(files...)
	if err != nil {
		return err
	}
	media := types.OCILayer
	if kind == "foreign" {
		media = types.OCIRestrictedLayer
	}
	img, err := mutate.Append(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1),
		mutate.Addendum{Layer: first, MediaType: types.OCILayer}, mutate.Addendum{Layer: second, MediaType: media})
	if err != nil {
		return err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	entries := map[string]int{"no history": 0, "short history": 1, "long history": 4}
	n, odd := entries[kind]
	if !odd {
		n = 2
	}
	cfg.History = make([]v1.History, n)
	if kind == "32 bits" {
		cfg.Architecture = map[string]string{"amd64": "386", "arm64": "arm"}[runtime.GOARCH]
	}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	platform := v1.Platform{OS: cfg.OS, Architecture: cfg.Architecture}
	if kind != "32 bits" {
		return p.AppendImage(img, layout.WithPlatform(platform)) // without a name
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}})
	return errors.Join(p.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "other"})))
}
