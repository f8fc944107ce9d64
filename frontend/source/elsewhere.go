package source

import (
	"fmt"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/llb"
)

// Elsewhere are contexts of a client that is not on this machine, and what takes the place of contexts. The zero value has none.
type Elsewhere struct {
	// Local returns the op of a directory of the client, by the name "context" for the build context and the name of a named context; nil for
	// one that has the name alone.
	Local func(name string) llb.Local
	// Context is the build context if that is no directory of the client; nil for one.
	Context *llb.Output
	// Inputs are root file systems that were made elsewhere, for named contexts "input:NAME".
	Inputs map[string]Input
}

// Input is a root file system that was made elsewhere.
type Input struct {
	Root llb.Output
	// Config is the configuration of the image that it is of; nil if it is of none.
	Config *dockerspec.DockerOCIImage
}

// Directory returns the op of a directory of the client.
func (e *Elsewhere) Directory(name string) llb.Local {
	if e.Local == nil {
		return llb.Local{Name: name}
	}
	return e.Local(name)
}

// Input returns the root file system that a named context stands for.
func (e *Elsewhere) Input(c *Context) (Input, error) {
	in, ok := e.Inputs[c.Input]
	if !ok {
		return in, fmt.Errorf("invalid input %s for %s", c.Input, c.Name)
	}
	return in, nil
}
