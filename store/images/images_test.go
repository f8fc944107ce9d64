package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
)

// TestListEnds shows that what goes through all images ends with its context.
func TestListEnds(t *testing.T) {
	root, err := store.Open(context.Background(), t.TempDir(), &config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for i := range 3 {
		desc, err := root.Images.Put("application/x", fmt.Append(nil, i))
		if err == nil {
			err = root.Images.Tag(fmt.Sprintf("image:%d", i), desc)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	set := New(root, registry.New(nil))
	if _, err := set.List(ctxtest.EndAfter(1)); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("List: %v", err)
	}
}

// TestIDBeforeName shows that a whole ID or digest means the image that has it, whatever another image in the list is called: other tools
// write that list too.
func TestIDBeforeName(t *testing.T) {
	set := openImages(t)
	files := []file{{name: "c.json", data: oneLayer}, {name: "l.tar", data: string(make([]byte, 1024))}}
	load := func(manifest, config string) Loaded {
		files[0].data = config
		got, err := set.Load(t.Context(), bytes.NewReader(archiveOf(t, append(files, file{name: "manifest.json", data: manifest})...)), LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return got[0]
	}
	good := load(`[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["good:1"]}]`, oneLayer)
	other := load(`[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["other:1"]}]`, strings.Replace(oneLayer, "amd64", "arm64", 1))
	index := filepath.Join(set.store.Root(), "index.json")
	list, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{good.ID, good.desc.Digest.String()} {
		for _, name := range []string{id, strings.TrimPrefix(id, "sha256:")} {
			if err := set.Tag(t.Context(), "good:1", name); !errors.As(err, new(*input.Error)) {
				t.Errorf("tag %s: %v", name, err)
			}
			if err := os.WriteFile(index, bytes.ReplaceAll(list, []byte("docker.io/library/other:1"), []byte(name)), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := set.lookup(t.Context(), name); err != nil || got.Desc.Digest != good.desc.Digest {
				t.Errorf("%s is %+v, %v", name, got, err)
			}
		}
	}
	if got, err := set.lookup(t.Context(), other.ID); err != nil || got.Desc.Digest != other.desc.Digest {
		t.Errorf("the list has %+v, %v", got, err)
	}
}
