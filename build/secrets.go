package build

import (
	"fmt"
	"os"

	"github.com/kilnbuild/kiln/build/contexts"
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

// Secret implements session.Secrets.
func (s Secrets) Secret(id string) ([]byte, bool, error) {
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
