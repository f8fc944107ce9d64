package buildcmd

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/bake"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/spf13/cobra"
)

// bakeFlags are the flags of bake.
type bakeFlags struct {
	files, sets, vars, allow []string
	list                     string
	print, check             bool
	all                      bake.Flags
	shown                    progressFlags
	source                   sourceFlags
	metadataFile, builder    string
	repro                    reproducibleFlags
	sign                     []string
}

// Bake returns the command of that name.
func Bake(a *app.App) *cobra.Command {
	var f bakeFlags
	cmd := &cobra.Command{
		Use:   "bake [flags] [TARGET...]",
		Short: "Build the targets of a bake definition, together",
		Long: `Build the targets of docker-bake.hcl, docker-bake.json or a compose file, as docker buildx bake does. TARGET is a target, a group, or a
pattern of both; without any the target or group "default" is built.`,
		Example: `  kiln bake --print
  kiln bake app --set app.args.VERSION=2 --push`,
		RunE: func(cmd *cobra.Command, args []string) error {
			builds := func() bool { return !f.print && f.list == "" }
			if err := a.HandOver(slices.Contains(f.allow, values.Frontend), builds); err != nil {
				return err
			}
			return a.AsRoot(func(cmd *cobra.Command, args []string) error { return f.run(a, cmd, args) })(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.files, "file", "f", nil, "`FILE` of the definition, or - for standard input; later ones are read on top "+
		"(default $BUILDX_BAKE_FILE, else the compose and bake files of the working directory)")
	flags.StringArrayVar(&f.sets, "set", nil, "`PATTERN.KEY=VALUE` attribute of targets: KEY.NAME for one of a mapping, += to append to a list")
	flags.StringArrayVar(&f.vars, "var", nil, "`NAME=VALUE` value of a variable")
	flags.StringArrayVar(&f.allow, "allow", nil,
		"`PRIVILEGE` to grant to the definition: network.host, security.insecure, device[=NAME], frontend, ssh, "+
			"fs=PATH, fs.read=PATH, fs.write=PATH")
	help.Group(flags, "Definition")
	flags.StringVar(&f.list, "list", "", "`targets|variables` list them; type=TYPE,format=json lists them as JSON")
	flags.BoolVar(&f.print, "print", false, "print the targets as JSON")
	flags.BoolVar(&f.check, "check", false, "check the Dockerfiles: same as --call=check")
	flags.StringVar(&f.all.Call, "call", "", "`METHOD` build, check, outline or targets; all but the first with ,format=json (default what the targets say)")
	help.Group(flags, "Check without building")
	flags.BoolVar(&f.all.Push, "push", false, "push the images")
	flags.BoolVar(&f.all.Load, "load", false, "load the images: adds an output type=docker")
	flags.StringVar(&f.metadataFile, "metadata-file", "", "`FILE` for what was built, as JSON by target")
	flags.StringVar(&f.all.Provenance, "provenance", "", "`true|false|VALUES` provenance of all targets")
	flags.StringVar(&f.all.SBOM, "sbom", "", "`true|false|VALUES` SBOM of all targets")
	f.repro.add(flags)
	values.SignFlag(flags, &f.sign)
	help.Group(flags, "Result")
	flags.BoolVar(&f.all.NoCache, "no-cache", false, "run every step, even if it is cached")
	flags.BoolVar(&f.all.Pull, "pull", false, "check the registry for newer base images")
	f.source.addLocked(flags)
	help.Group(flags, "Cache")
	flags.StringVar(&f.builder, "builder", "", "default, or nothing: kiln has no builders")
	_ = flags.MarkHidden("builder") // it was just added
	a.RegistryFlags(flags)
	help.Group(flags, "Registries")
	f.shown.add(flags)
	help.Group(flags, "Progress")
	return cmd
}

func (f *bakeFlags) run(a *app.App, cmd *cobra.Command, names []string) error {
	if f.builder != "" && f.builder != "default" {
		return app.UsageErrorf("--builder %s: kiln has no builders", f.builder)
	}
	if len(names) > 0 && (remoteurl.IsGitContext(names[0]) || strings.Contains(names[0], "://")) {
		return app.UsageErrorf("%s: remote definitions are not supported: clone the repository, or fetch the file and name it with -f", names[0])
	}
	if f.check {
		f.all.Call = "lint" // as buildx prints it
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	d, err := f.load(cmd, dir)
	if err != nil {
		return &input.Error{Err: err}
	}
	if f.list != "" {
		return f.listed(a, d)
	}
	plan, err := d.Plan(bake.Request{Names: names, Sets: f.sets, Flags: f.all})
	if err != nil {
		return &input.Error{Err: err}
	}
	if f.print {
		return plan.Print(a.Stdout)
	}
	targets, err := f.targets(plan, dir)
	if err != nil {
		return &input.Error{Err: err}
	}
	if len(targets) == 0 {
		a.Complain("no target has anything to build")
		return nil
	}
	return buildTargets(a, cmd, targets, setFlags{progress: f.shown, metadataFile: f.metadataFile, repro: f.repro, sign: f.sign})
}

// load reads the definition.
func (f *bakeFlags) load(cmd *cobra.Command, dir string) (*bake.Definition, error) {
	if err := f.all.Check(); err != nil {
		return nil, err
	}
	files := f.files
	if v := os.Getenv("BUILDX_BAKE_FILE"); v != "" && len(files) == 0 {
		separator := os.Getenv("BUILDX_BAKE_PATH_SEPARATOR")
		if separator == "" {
			separator = string(os.PathListSeparator)
		}
		files = strings.Split(v, separator)
	}
	vars := map[string]string{}
	for _, v := range f.vars {
		name, value, ok := strings.Cut(v, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--var %q: it is not NAME=VALUE", v)
		}
		vars[name] = value
	}
	platform := llb.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}.Normalize()
	return bake.Load(cmd.Context(), bake.Options{
		Files: files, Stdin: cmd.InOrStdin(), Dir: dir, Vars: vars, Env: os.LookupEnv, Platform: platform.String(),
	})
}

// listed prints what --list asks for.
func (f *bakeFlags) listed(a *app.App, d *bake.Definition) error {
	kind, format := "", "table"
	for field := range strings.SplitSeq(f.list, ",") {
		switch key, value, ok := strings.Cut(field, "="); {
		case !ok && kind == "":
			kind = field
		case key == "type":
			kind = value
		case key == "format":
			format = value
		default:
			return app.UsageErrorf("--list %s: it is not type=targets|variables[,format=table|json]", f.list)
		}
	}
	if format != "table" && format != "json" {
		return app.UsageErrorf("--list %s: the format is table or json", f.list)
	}
	switch kind {
	case "targets":
		return d.ListTargets(a.Stdout, format == "json")
	case "variables":
		return d.ListVariables(a.Stdout, format == "json")
	}
	return app.UsageErrorf("--list %s: there are targets and variables", f.list)
}

// targets returns what is to be built.
func (f *bakeFlags) targets(plan *bake.Plan, dir string) ([]target, error) {
	allowed, err := bake.ParseAllow(f.allow)
	if err != nil {
		return nil, err
	}
	files := os.Getenv("BUILDX_BAKE_ENTITLEMENTS_FS")
	if err := allowed.Missing(plan, dir, files != "0" && files != "false"); err != nil {
		return nil, err
	}
	var all []target
	for _, name := range slices.Sorted(maps.Keys(plan.Targets)) {
		t, err := bakeTarget(plan.Targets[name])
		if err != nil {
			return nil, fmt.Errorf("target %s: %w", name, err)
		}
		t.flags.source.locked, t.flags.client.frontends = f.source.locked, allowed.Frontends
		all = append(all, t)
	}
	return all, nil
}

// bakeTarget returns a target of a definition with what the flags of kiln build say for the same.
func bakeTarget(t *bake.Target) (target, error) {
	out := target{name: t.Name, needs: map[string]string{}, linked: t.Linked, context: *t.Context}
	flags := &out.flags
	switch {
	case len(t.Policy) > 0:
		return out, errors.New("policies are not supported")
	case *t.Context == "-":
		return out, errors.New("the context of one of several targets cannot be standard input")
	}
	out.setDockerfile(*t.Dockerfile, t.DockerfileInline)
	for _, key := range slices.Sorted(maps.Keys(t.Contexts)) {
		value := t.Contexts[key]
		if value == nil {
			continue
		}
		if other, ok := strings.CutPrefix(*value, bake.TargetContext); ok {
			out.needs[key] = other
			continue
		}
		flags.source.named = append(flags.source.named, key+"="+strings.TrimPrefix(*value, "cwd://"))
	}
	flags.target.stage, flags.run.network, flags.run.shmSize, flags.call.call = text(t.Stage), text(t.Network), text(t.ShmSize), text(t.Call)
	flags.target.platforms, flags.run.ulimits = t.Platforms, t.Ulimits
	flags.target.args = pairs(t.Args)
	flags.target.labels = pairs(t.Labels)
	for _, host := range pairs(t.ExtraHosts) {
		name, addresses, _ := strings.Cut(host, "=")
		for address := range strings.SplitSeq(addresses, ",") {
			flags.run.hosts = append(flags.run.hosts, name+"="+address)
		}
	}
	flags.caching.off.Steps, flags.caching.pull = t.NoCache != nil && *t.NoCache, t.Pull != nil && *t.Pull
	flags.caching.offFor = t.NoCacheFilter
	for _, c := range t.CacheFrom {
		flags.caching.from = append(flags.caching.from, c.String())
	}
	for _, c := range t.CacheTo {
		flags.caching.to = append(flags.caching.to, c.String())
	}
	for _, s := range t.Secrets {
		flags.client.secrets = append(flags.client.secrets, s.String())
	}
	for _, s := range t.SSH {
		agent := s["id"]
		if s["paths"] != "" {
			agent += "=" + s["paths"]
		}
		flags.client.agents = append(flags.client.agents, agent)
	}
	flags.client.entitlements = t.Entitlements
	if t.Linked {
		return out, nil // it is built for others alone: its image has no name
	}
	flags.export.tags, flags.export.annotations = t.Tags, t.Annotations
	for _, e := range t.Attest {
		flags.export.attestations = append(flags.export.attestations, e.String())
	}
	for _, o := range t.Outputs {
		flags.export.outputs = append(flags.export.outputs, o.String())
	}
	return out, nil
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// pairs returns a mapping as KEY=VALUE, without the keys that have no value.
func pairs(m map[string]*string) []string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if value := m[key]; value != nil {
			all = append(all, key+"="+*value)
		}
	}
	return all
}
