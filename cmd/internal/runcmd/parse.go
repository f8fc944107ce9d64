package runcmd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/run"
	csvvalue "github.com/tonistiigi/go-csvvalue"
)

// loopback is where ports are published that name no address.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// parsePort reads a value of --publish: [IP:][PORT]:PORT[/tcp|/udp], or a PORT of the container alone.
func parsePort(value string) (p network.Port, err error) {
	rest, protocol, ok := strings.Cut(value, "/")
	if p.Protocol = strings.ToLower(protocol); !ok {
		p.Protocol = "tcp"
	}
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return p, fmt.Errorf("the protocol %q is neither tcp nor udp", protocol)
	}
	host, inside := "", rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, inside = rest[:i], rest[i+1:]
	}
	if p.Inside, err = parseNumber(inside); err != nil || p.Inside == 0 {
		return p, fmt.Errorf("the port of the container %q is not one between 1 and 65535", inside)
	}
	addr, port := loopback, host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		text := host[:i]
		if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
			text = text[1 : len(text)-1]
		}
		if addr, err = netip.ParseAddr(text); err != nil || addr.Zone() != "" {
			return p, fmt.Errorf("%q is not an IP address of this machine", text)
		}
		port = host[i+1:]
	}
	n := uint16(0)
	if port != "" {
		if n, err = parseNumber(port); err != nil {
			return p, fmt.Errorf("the port of this machine %q is not one between 0 and 65535", port)
		}
	}
	p.Host = netip.AddrPortFrom(addr.Unmap(), n)
	return p, nil
}

func parseNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err
}

// errNamed is about volumes that outlive a container.
var errNamed = errors.New("named volumes are not supported: name a directory of this machine, as ./data:/data")

// parseVolume reads a value of --volume: PATH:TARGET[:ro|rw], or TARGET.
func parseVolume(value string) (v run.Volume, err error) {
	fields := strings.Split(value, ":")
	switch len(fields) {
	case 1:
		v.Target = value
		return v, checkTarget(v.Target)
	case 2, 3:
	default:
		return v, errors.New("it is not PATH:TARGET[:ro]; --mount takes paths with a colon")
	}
	v = run.Volume{Kind: run.Bind, Source: fields[0], Target: fields[1]}
	if len(fields) == 3 {
		switch fields[2] {
		case "ro":
			v.ReadOnly = true
		case "rw":
		default:
			return v, fmt.Errorf("the option %q is not supported: use ro or rw", fields[2])
		}
	}
	return v, checkBind(&v)
}

// checkBind checks a bind, and makes its path absolute.
func checkBind(v *run.Volume) (err error) {
	switch {
	case v.Source == "":
		return errors.New("the path on this machine is missing")
	case !strings.ContainsRune(v.Source, '/') && v.Source != "." && v.Source != "..":
		return errNamed
	}
	if v.Source, err = filepath.Abs(v.Source); err != nil {
		return err
	}
	return checkTarget(v.Target)
}

// checkTarget returns what is wrong with a path in the container.
func checkTarget(target string) error {
	switch {
	case target == "":
		return errors.New("the path in the container is missing")
	case !path.IsAbs(target) && !strings.ContainsRune(target, '/'):
		return errNamed
	case !path.IsAbs(target):
		return fmt.Errorf("the path in the container %q is not absolute", target)
	case path.Clean(target) == "/":
		return errors.New("it would cover the root file system")
	}
	return nil
}

// parseTmpfs reads a value of --tmpfs: TARGET[:size=SIZE].
func parseTmpfs(value string) (v run.Volume, err error) {
	target, options, _ := strings.Cut(value, ":")
	v = run.Volume{Kind: run.Tmpfs, Target: target}
	for o := range strings.SplitSeq(options, ",") {
		key, text, _ := strings.Cut(o, "=")
		switch key {
		case "", "rw", "nodev": // as all are
		case "size":
			if v.Size, err = size(text); err != nil {
				return v, err
			}
		default:
			return v, fmt.Errorf("the option %q is not supported: use size=SIZE", o)
		}
	}
	return v, checkTarget(target)
}

// parseMount reads a value of --mount.
func parseMount(value string) (v run.Volume, err error) {
	fields, err := csvvalue.Fields(value, nil)
	if err != nil {
		return v, fmt.Errorf("it is not a comma separated list: %w", err)
	}
	kind := "volume"
	for _, field := range fields {
		key, text, given := strings.Cut(field, "=")
		switch strings.ToLower(key) {
		case "type":
			kind = text
		case "src", "source":
			v.Source = text
		case "dst", "destination", "target":
			v.Target = text
		case "ro", "readonly":
			v.ReadOnly = true
			if given {
				if v.ReadOnly, err = strconv.ParseBool(text); err != nil {
					return v, fmt.Errorf("%s is true or false, not %q", key, text)
				}
			}
		case "tmpfs-size":
			if v.Size, err = size(text); err != nil {
				return v, err
			}
		default:
			return v, fmt.Errorf("the option %q is not supported", field)
		}
	}
	if v.Size > 0 && kind != "tmpfs" {
		return v, fmt.Errorf("tmpfs-size is for type=tmpfs")
	}
	switch kind {
	case "bind":
		v.Kind = run.Bind
		if v.Source != "" && !strings.ContainsRune(v.Source, '/') {
			v.Source = "./" + v.Source
		}
		return v, checkBind(&v)
	case "tmpfs":
		v.Kind = run.Tmpfs
	case "volume":
	default:
		return v, fmt.Errorf("type=%s is not supported: use bind, tmpfs or volume", kind)
	}
	if v.Source != "" && kind == "volume" {
		return v, errNamed
	}
	if v.Source != "" || v.ReadOnly {
		return v, fmt.Errorf("type=%s has neither source nor readonly", kind)
	}
	return v, checkTarget(v.Target)
}

// maxEnvFile bounds a file of --env-file in bytes.
const maxEnvFile = 1 << 20

// readEnvFile reads a file of --env-file: a variable on each line, as it is, without quotes; lines that are empty or begin with # are left
// out.
func readEnvFile(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxEnvFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxEnvFile)
	}
	return parseEnvFile(text)
}

func parseEnvFile(text []byte) (env []string, err error) {
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff"))))
	lines.Buffer(nil, maxEnvFile+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if !utf8.ValidString(line) || strings.ContainsRune(line, 0) {
			return nil, fmt.Errorf("line %d is not text", n)
		}
		v, ok, err := variable(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if ok {
			env = append(env, v)
		}
	}
	return env, lines.Err()
}
