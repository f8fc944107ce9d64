package build

import (
	"context"
	"fmt"
	"os"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/internal/termtext"
)

// Secret is a secret that RUN --mount=type=secret can ask for by ID. Exactly one of Src, a file's path, and Env, an
// environment variable's name, says where it is.
type Secret struct {
	ID  string
	Src string
	Env string
}

// Secrets are the values of --secret.
type Secrets []Secret

// maxSecret bounds a secret, in bytes, as BuildKit does.
const maxSecret = 500 << 10

// Check returns an error if the secret is a file that cannot be read, so that no step runs first.
func (s Secret) Check() error {
	if s.Src == "" {
		return nil
	}
	f, err := contexts.OpenFile(s.Src)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Size() > maxSecret {
		err = fmt.Errorf("%s is larger than the %s that are allowed", s.Src, termtext.Size(maxSecret))
	}
	return err
}

// Secret implements session.Secrets.
func (s Secrets) Secret(_ context.Context, id string) ([]byte, bool, error) {
	for _, secret := range s {
		if secret.ID != id {
			continue
		}
		if secret.Env != "" {
			v, ok := os.LookupEnv(secret.Env)
			return []byte(v), ok, nil
		}
		data, err := contexts.ReadFile(secret.Src, maxSecret)
		if err != nil {
			return nil, false, fmt.Errorf("read secret %q: %w", id, err)
		}
		return data, true, nil
	}
	return nil, false, nil
}
