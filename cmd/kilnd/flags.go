package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/version"
	"github.com/spf13/pflag"
)

// settings are what the command line and the configuration files say.
type settings struct {
	listening
	config       *config.Config
	root         string
	entitlements []string
	labels       map[string]string
	provenance   map[string]any
	debug        bool
}

// nothing are flags of buildkitd whose value, where it is one of these, asks for nothing that kilnd does not do.
var nothing = []struct {
	name   string
	usage  string
	values []string
}{
	{"oci-worker", "the worker, which is kiln's", []string{"true", "auto"}},
	{"oci-worker-rootless", "", []string{"true", "false"}},
	{"rootless", "", []string{"true", "false"}},
	{"oci-worker-snapshotter", "", []string{"", "auto", "overlayfs", "native"}},
	{"oci-worker-net", "", []string{"", "auto", "host"}},
	{"oci-worker-binary", "", []string{""}},
	{"oci-worker-apparmor-profile", "", []string{""}},
	{"oci-worker-selinux", "", []string{"", "false"}},
	{"oci-worker-proxy-snapshotter-path", "", []string{""}},
	{"oci-worker-platform", "", []string{""}},
	{"oci-max-parallelism", "", []string{"", "0"}},
	{"containerd-worker", "", []string{"false", "auto"}},
	{"otel-socket-path", "", []string{""}},
	{"trace", "", []string{"false", "true"}},
	{"save-cache-debug", "", []string{"false"}},
	{"proxy-network", "", []string{"false"}},
	{"log-format", "", []string{"", "text"}},
}

// value is a flag that may only have some values.
type value struct {
	name    string
	allowed []string
	given   string
}

// Set implements pflag.Value.
func (v *value) Set(s string) error {
	for _, a := range v.allowed {
		if a == s {
			v.given = s
			return nil
		}
	}
	return fmt.Errorf("kilnd has no such worker: only %s=%s is accepted", v.name, strings.Join(v.allowed, " or "))
}

// String implements pflag.Value.
func (v *value) String() string { return v.given }

// Type implements pflag.Value.
func (v *value) Type() string { return "string" }

// read reads the command line and the configuration files. It returns nil if there is nothing to be done.
func read(name string, args []string) (*settings, error) {
	s := &settings{labels: map[string]string{}}
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage: %s [flags]\n\nServe BuildKit's API with kiln.\n\nFlags:\n%s", name, flags.FlagUsages())
	}
	addresses := flags.StringArray("addr", nil,
		"`ADDRESS` to listen on: unix://PATH, tcp://HOST:PORT with --tlscert, --tlskey and --tlscacert, or fd:// for sockets of systemd")
	file := flags.String("config", "",
		"`FILE` with the configuration, in the form of buildkitd.toml (default /etc/buildkit/buildkitd.toml for buildkitd)")
	flags.StringVar(&s.root, "root", "", "`DIR` where images, layers and the cache are kept")
	group := flags.String("group", "", "`GROUP` that may use the socket, by name or number")
	flags.StringVar(&s.cert, "tlscert", "", "`FILE` with the server's certificate")
	flags.StringVar(&s.key, "tlskey", "", "`FILE` with the server's key")
	flags.StringVar(&s.ca, "tlscacert", "", "`FILE` with the authorities whose certificates clients need")
	allowed := flags.StringArray("allow-insecure-entitlement", nil, "`NAME` clients may ask for: network.host, security.insecure, device")
	labels := flags.StringArray("oci-worker-labels", nil, "`NAME=VALUE` label of the worker")
	noProc := flags.Bool("oci-worker-no-process-sandbox", false,
		"let each RUN see kiln's own /proc, for containers in which no other can be mounted")
	gc := flags.Bool("oci-worker-gc", true, "remove what has not been used for long when a build ends and the disk is nearly full")
	keep := flags.String("oci-worker-gc-keepstorage", "", "`MB` that the cache may have in any case")
	noCDI := flags.Bool("cdi-disabled", false, "do without devices of the Container Device Interface")
	cdiDirs := flags.StringArray("cdi-spec-dir", nil, "`DIR` with specifications of devices")
	flags.BoolVarP(&s.debug, "debug", "D", false, "print debug messages")
	debugAddr := flags.String("debugaddr", "", "`ADDRESS` of profiles, which kilnd does not serve")
	level := flags.String("log-level", "", "`LEVEL` of messages: debug is --debug")
	showVersion := flags.BoolP("version", "v", false, "print the version")
	for _, n := range nothing {
		flags.Var(&value{name: n.name, allowed: n.values}, n.name, n.usage)
		flags.Lookup(n.name).Hidden = true
		flags.Lookup(n.name).NoOptDefVal = n.values[0]
	}
	if err := flags.Parse(args); err != nil {
		if err == pflag.ErrHelp {
			return nil, err
		}
		return nil, &input.Error{Err: err}
	}
	if flags.NArg() > 0 {
		return nil, &input.Error{Err: fmt.Errorf("it takes no arguments, and %q is one", flags.Arg(0))}
	}
	if *showVersion {
		fmt.Printf("%s github.com/kilnbuild/kiln %s\n", name, version.String())
		return nil, nil
	}
	if *debugAddr != "" {
		complain("--debugaddr: profiles are not served")
	}
	s.debug = s.debug || *level == "debug" || *level == "trace"
	if err := s.configure(name, *file); err != nil {
		return nil, err
	}
	for _, l := range *labels {
		for one := range strings.SplitSeq(l, ",") {
			k, v, ok := strings.Cut(one, "=")
			if !ok {
				return nil, &input.Error{Err: fmt.Errorf("--oci-worker-labels %q is not NAME=VALUE", one)}
			}
			s.labels[k] = v
		}
	}
	for _, list := range *allowed {
		s.entitlements = append(s.entitlements, strings.Split(list, ",")...)
	}
	for _, e := range s.entitlements {
		if err := checkEntitlement(e); err != nil {
			return nil, &input.Error{Err: fmt.Errorf("--allow-insecure-entitlement: %w", err)}
		}
	}
	if len(*addresses) > 0 {
		s.addresses = *addresses
	}
	if len(s.addresses) == 0 {
		s.addresses = []string{defaultAddress(name)}
	}
	if *group != "" {
		s.group = *group
	}
	s.config.NoProcessSandbox = s.config.NoProcessSandbox || *noProc
	if flags.Changed("oci-worker-gc") {
		s.config.GC.Enabled = gc
	}
	if *keep != "" {
		s.config.GC.ReservedSpace = *keep + "MB"
	}
	if *noCDI {
		s.config.CDI.SpecDirs = []string{os.DevNull}
	} else if len(*cdiDirs) > 0 {
		s.config.CDI.SpecDirs = *cdiDirs
	}
	if s.root == "" && s.config.Root == "" && name == "buildkitd" && os.Geteuid() == 0 {
		s.root = "/var/lib/buildkit" // the volume of buildx' drivers
	}
	for i, a := range s.addresses {
		if path, ok := strings.CutPrefix(a, "unix://"); ok {
			if err := rootdir.Absolute(&path); err != nil {
				return nil, err
			}
			s.addresses[i] = "unix://" + path
		}
	}
	for _, path := range []*string{&s.root, &s.cert, &s.key, &s.ca} {
		if err := rootdir.Absolute(path); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// defaultAddress returns where a daemon of this name listens.
func defaultAddress(name string) string {
	dir, socket := "kiln", "kilnd.sock"
	if name == "buildkitd" || name == "buildctl" {
		dir, socket = "buildkit", "buildkitd.sock"
	}
	run := "/run"
	if os.Geteuid() != 0 {
		if v := os.Getenv("XDG_RUNTIME_DIR"); v != "" {
			run = v
		}
	}
	return "unix://" + run + "/" + dir + "/" + socket
}
