package buildcmd

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/compose"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/spf13/cobra"
)

// composeFlags are the flags of all compose commands.
type composeFlags struct {
	files, profiles, envFiles []string
	name, dir                 string
}

// composeBuildFlags are those of compose build.
type composeBuildFlags struct {
	push, pull, noCache, dependencies bool
	args, agents, sign                []string
	memory                            string
	shown                             progressFlags
	source                            sourceFlags
	repro                             reproducibleFlags
}

// Compose returns the command of that name.
func Compose(a *app.App) *cobra.Command {
	var f composeFlags
	cmd := &cobra.Command{
		Use:     "compose COMMAND",
		Short:   "Build the images of a compose file",
		Example: "  kiln compose build\n  kiln compose -f compose.ci.yaml build --push web worker",
		RunE:    app.HelpOrUnknown,
		Args:    cobra.ArbitraryArgs,
	}
	flags := cmd.PersistentFlags()
	flags.StringArrayVarP(&f.files, "file", "f", nil, "`FILE` compose file, or - for standard input; later files override earlier ones (default compose.yaml and its override)")
	flags.StringVarP(&f.name, "project-name", "p", "", "`NAME` name of the project (default $COMPOSE_PROJECT_NAME, else the name in the file, else that of the directory)")
	flags.StringArrayVar(&f.profiles, "profile", nil, "`PROFILE` also build the services of this profile (default $COMPOSE_PROFILES)")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "`FILE` file with environment variables (default .env in the project directory)")
	flags.StringVar(&f.dir, "project-directory", "", "`DIR` directory that paths in compose files are relative to (default that of the first file)")
	help.Group(flags, "Compose files")
	cmd.AddCommand(composeBuildCommand(a, &f))
	return cmd
}

func composeBuildCommand(a *app.App, f *composeFlags) *cobra.Command {
	var b composeBuildFlags
	cmd := &cobra.Command{
		Use:   "build [flags] [SERVICE...]",
		Short: "Build the images of services",
		Long:  "Build the images of these services, or of all services that have a build section, at the same time.",
		Example: `  kiln compose build
  kiln compose build --push --build-arg VERSION=1.2 web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.HandOver(false, func() bool { return true }); err != nil {
				return err
			}
			return a.AsRoot(func(cmd *cobra.Command, args []string) error { return b.run(a, f, cmd, args) })(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&b.push, "push", false, "push the images")
	values.SignFlag(flags, &b.sign)
	flags.BoolVar(&b.pull, "pull", false, "check the registry for newer base images")
	b.source.addLocked(flags)
	flags.BoolVar(&b.noCache, "no-cache", false, "run every step, even if it is cached")
	flags.BoolVar(&b.dependencies, "with-dependencies", false, "also build the services that these depend on")
	flags.StringArrayVar(&b.args, "build-arg", nil, "`NAME[=VALUE]` value of an ARG of all services; without a value, that of the environment variable")
	flags.StringArrayVar(&b.agents, "ssh", nil, "`ID[=PATH]` ssh agent for RUN --mount=type=ssh: a socket or unencrypted key files (default $SSH_AUTH_SOCK)")
	flags.StringVarP(&b.memory, "memory", "m", "", "`SIZE` memory limit of each RUN, such as 2g")
	b.repro.add(flags)
	help.Group(flags, "Build")
	a.RegistryFlags(flags)
	help.Group(flags, "Registries")
	b.shown.add(flags)
	help.Group(flags, "Progress")
	return cmd
}

func (b *composeBuildFlags) run(a *app.App, f *composeFlags, cmd *cobra.Command, services []string) error {
	targets, err := f.targets(cmd, b, services)
	if err != nil {
		return &input.Error{Err: err}
	}
	if len(targets) == 0 {
		a.Complain("no service has anything to build")
		return nil
	}
	return buildTargets(a, cmd, targets, setFlags{progress: b.shown, repro: b.repro, sign: b.sign})
}

// Services returns the names of the services that the flags of compose build select among, and of all profiles, for completion. Standard
// input is not read.
func Services(cmd *cobra.Command) (services, profiles []string, err error) {
	var f composeFlags
	flags := cmd.Flags()
	f.files, _ = flags.GetStringArray("file") // these flags exist
	f.envFiles, _ = flags.GetStringArray("env-file")
	f.dir, _ = flags.GetString("project-directory")
	dir, err := f.find()
	if err != nil {
		return nil, nil, err
	}
	lookup, _, err := compose.Environment(dir, f.envFiles)
	if err != nil {
		return nil, nil, err
	}
	p, err := compose.Load(compose.Options{Files: f.files, Stdin: strings.NewReader(""), Dir: dir, Env: lookup})
	if err != nil {
		return nil, nil, err
	}
	for name, s := range p.Services {
		if s.Build != nil {
			services = append(services, name)
		}
		profiles = append(profiles, s.Profiles...)
	}
	slices.Sort(services)
	slices.Sort(profiles)
	return services, slices.Compact(profiles), nil
}

// targets reads the files and returns what is to be built.
func (f *composeFlags) targets(cmd *cobra.Command, b *composeBuildFlags, names []string) ([]target, error) {
	dir, err := f.find()
	if err != nil {
		return nil, err
	}
	lookup, env, err := compose.Environment(dir, f.envFiles)
	if err != nil {
		return nil, err
	}
	p, err := compose.Load(compose.Options{Files: f.files, Stdin: cmd.InOrStdin(), Dir: dir, Env: lookup, Shown: rootdir.Shown})
	if err != nil {
		return nil, err
	}
	if p.Name, err = f.projectName(p, dir, lookup); err != nil {
		return nil, err
	}
	profiles := f.profiles
	if v, ok := lookup("COMPOSE_PROFILES"); ok && len(profiles) == 0 {
		profiles = strings.Split(v, ",")
	}
	selected, err := p.Select(names, profiles, b.dependencies)
	if err != nil {
		return nil, err
	}
	// A secret may be a variable of a file.
	for name, value := range env {
		if _, ok := os.LookupEnv(name); !ok {
			if err := os.Setenv(name, value); err != nil {
				return nil, fmt.Errorf("set the variable %q: %w", name, err)
			}
		}
	}
	var targets []target
	for _, name := range selected {
		t, err := serviceTarget(p, p.Services[name], dir)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", name, err)
		}
		b.apply(&t)
		targets = append(targets, t)
	}
	return targets, nil
}

// find sets the files, and returns the project's directory.
func (f *composeFlags) find() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	if v := os.Getenv("COMPOSE_FILE"); v != "" && len(f.files) == 0 {
		separator := os.Getenv("COMPOSE_PATH_SEPARATOR")
		if separator == "" {
			separator = ":"
		}
		f.files = strings.Split(v, separator)
	}
	dir := wd
	if len(f.files) == 0 {
		if f.dir != "" {
			wd = f.dir
		}
		if dir, f.files, err = compose.Find(wd); err != nil {
			return "", err
		}
		return filepath.Abs(dir)
	}
	for i, file := range f.files {
		if file == "-" {
			continue
		}
		if err := rootdir.Absolute(&f.files[i]); err != nil {
			return "", err
		}
		if i == 0 {
			dir = filepath.Dir(f.files[i])
		}
	}
	if f.dir != "" {
		dir = f.dir
		err = rootdir.Absolute(&dir)
	}
	return dir, err
}

func (f *composeFlags) projectName(p *compose.Project, dir string, lookup compose.Lookup) (string, error) {
	name := f.name
	if name == "" {
		name, _ = lookup("COMPOSE_PROJECT_NAME")
	}
	if name == "" {
		name = p.Name
	}
	if name == "" {
		name = compose.NameOf(dir)
	}
	return name, compose.CheckName(name)
}

// serviceTarget returns the build of a service with what the flags of kiln build say for the same.
func serviceTarget(p *compose.Project, s *compose.Service, dir string) (target, error) {
	out := target{name: s.Name, needs: map[string]string{}}
	b, flags := s.Build, &out.flags
	switch {
	case b.Privileged:
		return out, errors.New("build.privileged is not supported: RUN --security=insecure gives privileges to a single step")
	case b.Isolation != "" && b.Isolation != "default":
		return out, fmt.Errorf("build.isolation %q is not supported", b.Isolation)
	}
	local := func(path string) string {
		if home, err := os.UserHomeDir(); err == nil && strings.HasPrefix(path, "~/") {
			return filepath.Join(home, path[2:])
		}
		if path == "" || filepath.IsAbs(path) || compose.Remote(path) {
			return path
		}
		// Relative to the working directory, as far as that is what a user would write: so errors show it.
		path = filepath.Join(dir, path)
		if wd, err := os.Getwd(); err == nil {
			if rel, err := filepath.Rel(wd, path); err == nil && rel != "-" {
				return rel
			}
		}
		return path
	}
	out.context = local(b.Context)
	if out.context == "" {
		out.context = dir
	}
	file := b.Dockerfile
	if file == "" {
		file = "Dockerfile"
	}
	out.setDockerfile(file, b.Inline)
	for _, key := range slices.Sorted(maps.Keys(b.Contexts)) {
		if other, ok := strings.CutPrefix(b.Contexts[key], compose.ServiceContext); ok {
			out.needs[key] = other
			continue
		}
		flags.source.named = append(flags.source.named, key+"="+local(b.Contexts[key]))
	}
	flags.export.provenance, flags.export.sbom = b.Provenance, b.SBOM
	flags.caching.from, flags.caching.to = b.CacheFrom, b.CacheTo
	flags.target.stage, flags.target.platforms = b.Target, b.Platforms
	if len(b.Platforms) == 0 && s.Platform != "" {
		flags.target.platforms = []string{s.Platform}
	}
	for _, name := range slices.Sorted(maps.Keys(b.Args)) {
		if value := b.Args[name]; value != nil {
			name += "=" + *value
		}
		flags.target.args = append(flags.target.args, name)
	}
	labels := slices.Sorted(maps.Keys(b.Labels))
	for _, key := range labels {
		flags.target.labels = append(flags.target.labels, key+"="+b.Labels[key])
	}
	image := s.Image
	if image == "" {
		image = p.Name + "-" + s.Name
	}
	flags.export.tags = []string{image}
	for _, tag := range b.Tags {
		if !slices.Contains(flags.export.tags, tag) {
			flags.export.tags = append(flags.export.tags, tag)
		}
	}
	flags.caching.off.Steps, flags.caching.pull, flags.caching.offFor = b.NoCache, b.Pull, b.NoCacheFilter
	flags.run.network, flags.run.shmSize, flags.run.ulimits = b.Network, b.ShmSize, b.Ulimits
	for _, host := range slices.Sorted(maps.Keys(b.Hosts)) {
		for address := range strings.SplitSeq(b.Hosts[host], ",") {
			flags.run.hosts = append(flags.run.hosts, host+"="+address)
		}
	}
	for _, agent := range b.SSH {
		id, path, ok := strings.Cut(agent, "=")
		if ok {
			id += "=" + local(path)
		}
		flags.client.agents = append(flags.client.agents, id)
	}
	flags.client.entitlements = b.Entitlements
	err := addSecrets(p, b, &out, local)
	return out, err
}

// addSecrets adds the secrets of the project that a build has.
func addSecrets(p *compose.Project, b *compose.Build, to *target, local func(string) string) error {
	for _, use := range b.Secrets {
		s, ok := p.Secrets[use.Source]
		switch {
		case !ok:
			return fmt.Errorf("build.secrets: the project has no secret %s", use.Source)
		case s.File != "":
			to.flags.client.secrets = append(to.flags.client.secrets, quoted("id="+use.ID)+","+quoted("src="+local(s.File)))
		case s.Env != "":
			to.flags.client.secrets = append(to.flags.client.secrets, quoted("id="+use.ID)+","+quoted("env="+s.Env))
		default:
			return fmt.Errorf("build.secrets: the secret %s has neither a file nor an environment variable", use.Source)
		}
	}
	return nil
}

// quoted returns a field of a comma separated list.
func quoted(field string) string { return `"` + strings.ReplaceAll(field, `"`, `""`) + `"` }

// apply adds what the command line says for all services.
func (b *composeBuildFlags) apply(t *target) {
	f := &t.flags
	f.export.push, f.source.locked = b.push, b.source.locked
	f.caching.pull = f.caching.pull || b.pull
	f.caching.off.Steps = f.caching.off.Steps || b.noCache
	f.target.args = append(f.target.args, b.args...)
	f.client.agents = append(f.client.agents, b.agents...)
	if b.memory != "" {
		f.run.resources = []string{"memory=" + b.memory}
	}
}
