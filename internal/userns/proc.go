package userns

import (
	"errors"

	"github.com/kilnbuild/kiln/internal/input"
)

// SharedProc reports whether each RUN sees kiln's own /proc, if that was asked for. The error is an *input.Error where kiln can always
// mount one.
func SharedProc(asked bool) (bool, error) {
	if !asked {
		return false, nil
	}
	ns, err := Current()
	if err == nil && !ns.Nested {
		err = &input.Error{Err: errors.New("--no-process-sandbox: works only in a user namespace, " +
			"as that of an ordinary user or of a container; root can always mount a /proc")}
	}
	return err == nil, err
}
