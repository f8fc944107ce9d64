package bake

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/llb"

	"github.com/docker/go-units"
)

// checkValues returns an error if a value is none of those that its attribute can have.
func (t *Target) checkValues() error {
	for _, p := range t.Platforms {
		for one := range strings.SplitSeq(p, ",") {
			if one == "local" {
				continue
			}
			if _, err := llb.ParsePlatform(one, llb.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}); err != nil {
				return fmt.Errorf("platforms: %w", err)
			}
		}
	}
	for _, u := range t.Ulimits {
		if _, err := units.ParseUlimit(u); err != nil {
			return fmt.Errorf("ulimits: %q is not NAME=SOFT[:HARD]: %w", u, err)
		}
	}
	for _, a := range t.Annotations {
		if !strings.Contains(a, "=") {
			return fmt.Errorf("annotations: %q is not KEY=VALUE", a)
		}
	}
	if t.ShmSize != nil {
		if _, err := units.RAMInBytes(*t.ShmSize); err != nil {
			return fmt.Errorf("shm-size: %q is not a size, as 64m", *t.ShmSize)
		}
	}
	for _, o := range t.Outputs {
		if o["type"] == "local" && o["dest"] == "" {
			return errors.New("output: type=local has no dest")
		}
	}
	return nil
}

// checkFiles returns an error if a secret's file or an agent's socket does not exist.
func (t *Target) checkFiles(env func(string) (string, bool)) error {
	for _, s := range t.Secrets {
		file := s["src"]
		if file == "" && s["env"] == "" {
			if _, ok := env(s["id"]); !ok {
				file = s["id"]
			}
		}
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("secret %s: the file %s: %w", s["id"], file, plain(err))
		}
	}
	for _, s := range t.SSH {
		paths := s.Paths()
		if len(paths) == 0 {
			socket, ok := env("SSH_AUTH_SOCK")
			if !ok || socket == "" {
				return fmt.Errorf("ssh %s: SSH_AUTH_SOCK is not set: start an agent, or name its socket or a key", s["id"])
			}
			paths = []string{socket}
		}
		if _, err := sshagent.Open(paths...); err != nil {
			return fmt.Errorf("ssh %s: %w", s["id"], err)
		}
	}
	return nil
}
