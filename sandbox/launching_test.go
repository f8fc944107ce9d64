package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/internal/mount"
)

// A program that was just written can be executed, though other steps begin all the time. There is no overlay over the file.
func TestNewProgram(t *testing.T) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 4 {
		im := newImage(t)
		all.Go(func() {
			for n := range 100 {
				name := fmt.Sprintf("/tmp/%d/true", n)
				if err := errors.Join(os.Mkdir(filepath.Dir(im.lower+name), 0o755), os.WriteFile(im.lower+name, busybox, 0o755)); err != nil {
					t.Error(err)
				}
				f, err := mount.Bind(im.lower, 0, nil)
				if err != nil {
					t.Error(err)
					return
				}
				var out bytes.Buffer
				status, err := Run(context.Background(), Spec{Root: f, Process: Process{Args: []string{name}, Env: []string{defaultPath}, User: root},
					Stdio: Stdio{Stdout: &out, Stderr: &out}})
				f.Close()
				if err != nil || status.ExitCode != 0 {
					t.Errorf("%s: %+v, %v, %s", name, status, err, out.String())
				}
			}
		})
	}
	all.Wait()
}
