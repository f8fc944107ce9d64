package execute

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/cdi"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
)

// Devices implements plan.Sources.
func (x *Job) Devices(op llb.Exec) error {
	_, err := x.devices(op)
	return err
}

// devices returns the devices of a RUN, each once. Those that do not exist are left out if they are allowed and not required: a build that
// allows no devices may have been meant to have them, unless Options.NoDevices says otherwise.
func (x *Job) devices(op llb.Exec) ([]*cdi.Device, error) {
	if len(op.Devices) == 0 {
		return nil, nil
	}
	registry := x.cdi()
	var devices []*cdi.Device
	for _, asked := range op.Devices {
		found, err := registry.Find(asked.Name)
		if err != nil {
			return nil, err
		}
		allowed := cdi.NameAllowed(asked.Name, x.Allow)
		if len(found) == 0 && (asked.Required || !allowed && !x.NoDevices) {
			err := fmt.Errorf("no specification in %s has the device %q, which is required", strings.Join(x.CDIDirs, ", "), asked.Name)
			if !asked.Required {
				err = fmt.Errorf("no specification in %s has the device %q (--allow device=%s runs the step without it)",
					strings.Join(x.CDIDirs, ", "), asked.Name, asked.Name)
			}
			if p := registry.Problems(); p != "" {
				err = fmt.Errorf("%w (%s)", err, p)
			}
			return nil, err
		}
		for _, d := range found {
			if !d.Allowed(asked.Name, x.Allow) {
				return nil, &DeviceError{d.Name}
			}
			if what := d.Unsupported(); what != "" {
				return nil, fmt.Errorf("the device %s has %s in its specification, which are not supported", d.Name, what)
			}
			if !slices.Contains(devices, d) {
				devices = append(devices, d)
			}
		}
	}
	return devices, nil
}

// DeviceError is a device that a step asks for, and that the build is not allowed to use.
type DeviceError struct{ Name string }

func (e *DeviceError) Error() string {
	return fmt.Sprintf("the device %s is not allowed (--allow device=%s allows it)", e.Name, e.Name)
}

// addDevices adds what the devices of the step need.
func (m *mounting) addDevices() error {
	devices, err := m.x.devices(m.op)
	if err != nil {
		return err
	}
	for _, d := range devices {
		for _, e := range d.Edits {
			m.deviceEnv = append(m.deviceEnv, e.Env...)
			m.groups = append(m.groups, e.Groups...)
			for _, n := range e.DeviceNodes {
				f, err := n.Open()
				if err != nil {
					return fmt.Errorf("device %s: node %s: %w", d.Name, n.Path, err)
				}
				m.closers = append(m.closers, func() { f.Close() })
				m.nodes = append(m.nodes, sandbox.Mount{Source: f, Target: path.Clean(n.Path)})
			}
			for _, b := range e.Mounts {
				f, err := b.Open()
				if err != nil {
					return fmt.Errorf("device %s: mount at %s: %w", d.Name, b.ContainerPath, err)
				}
				m.add(f, path.Clean(b.ContainerPath))
				m.mounts[len(m.mounts)-1].Shared = true
			}
		}
	}
	return nil
}

// override returns env with variables, of which those of the same name take the place of others.
func override(env, with []string) []string {
	for _, v := range with {
		name, _, _ := strings.Cut(v, "=")
		env = append(slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, name+"=") }), v)
	}
	return env
}
