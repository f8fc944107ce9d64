package buildcmd

import (
	"slices"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/app"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/values"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/llb"
	"github.com/spf13/pflag"
)

// buildFlags are the flags of build, in groups that are each added and read by itself.
type buildFlags struct {
	source   sourceFlags
	target   targetFlags
	call     callFlags
	caching  cachingFlags
	export   exportFlags
	run      runFlags
	client   clientFlags
	progress progressFlags
}

func (f *buildFlags) add(flags *pflag.FlagSet) {
	f.export.add(flags)
	f.source.add(flags)
	f.target.add(flags)
	f.caching.add(flags)
	f.run.add(flags)
	f.client.add(flags)
	f.call.add(flags)
	f.progress.add(flags)
}

// options returns what the flags app.Ask for.
func (f *buildFlags) options(context string) (o build.Options, err error) {
	o.Explain = f.progress.explain
	if o.Source, err = f.source.read(context); err != nil {
		return o, err
	}
	if o.Call, err = f.call.read(); err != nil {
		return o, err
	}
	if o.Target, err = f.target.read(); err != nil {
		return o, err
	}
	if o.Export, err = f.export.read(); err != nil {
		return o, err
	}
	o.Cache = f.caching.read()
	if o.Run, err = f.run.read(); err != nil {
		return o, err
	}
	if o.Client, err = f.client.read(); err != nil {
		return o, err
	}
	// Who asks for the host's network on the command line has allowed it.
	if o.Run.Network == llb.NetworkHost && !slices.Contains(o.Client.Allow, "network.host") {
		o.Client.Allow = append(o.Client.Allow, "network.host")
	}
	return o, o.Absolute()
}

// sourceFlags say where a build reads from.
type sourceFlags struct {
	file  string
	named []string
}

func (f *sourceFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&f.file, "file", "f", "", "the Dockerfile: a file, a URL, or - for standard input (default PATH/Dockerfile)")
	flags.StringArrayVar(&f.named, "build-context", nil, "another context, as NAME=DIRECTORY, NAME=URL, NAME=docker-image://IMAGE or NAME=oci-layout://DIRECTORY")
}

func (f *sourceFlags) read(context string) (s contexts.Source, err error) {
	isDir, err := contexts.Check(context)
	if err != nil {
		return s, app.UsageErrorf("build context: %w", err)
	}
	if context == "-" && f.file == "-" {
		return s, app.UsageErrorf("standard input cannot be both the build context and the Dockerfile (-f -)")
	}
	s = contexts.Source{Context: context, Dockerfile: f.file}
	if s.Named, err = values.BuildContexts(f.named); err != nil {
		return s, err
	}
	if isDir {
		if err := values.CheckDir(context); err != nil {
			return s, app.UsageErrorf("build context: %w", err)
		}
	}
	return s, nil
}

// targetFlags say what to build.
type targetFlags struct {
	stage                   string
	args, platforms, labels []string
}

func (f *targetFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.stage, "target", "", "the stage to build (default the last)")
	flags.StringArrayVar(&f.args, "build-arg", nil, "value of an ARG, as NAME[=VALUE]")
	flags.StringArrayVar(&f.platforms, "platform", nil, "what to build for, as os/arch[/variant],… (default $DOCKER_DEFAULT_PLATFORM, else this machine)")
	flags.StringArrayVar(&f.labels, "label", nil, "label of the image, as KEY=VALUE")
}

func (f *targetFlags) read() (t build.Target, err error) {
	t.Stage = f.stage
	if t.Args, err = values.BuildArgs(f.args); err != nil {
		return t, err
	}
	if t.Platforms, err = values.Platforms(f.platforms); err != nil {
		return t, err
	}
	t.Labels, err = values.Labels(f.labels)
	return t, err
}

// cachingFlags say what to take from caches.
type cachingFlags struct {
	off    values.NoCache
	offFor []string
	verify bool
	pull   bool
}

func (f *cachingFlags) add(flags *pflag.FlagSet) {
	flags.Var(&f.off, "no-cache", "run every step; with =mounts cache mounts begin empty as well")
	flags.Lookup("no-cache").NoOptDefVal = "true"
	flags.StringArrayVar(&f.offFor, "no-cache-filter", nil, "run every step of these stages, as STAGE,…")
	flags.BoolVar(&f.verify, "verify-cache", false, "run cached steps again, and say which make something else; the cache is used all the same")
	flags.BoolVar(&f.pull, "pull", false, "ask the registry for newer base images")
}

func (f *cachingFlags) read() build.Caching {
	return build.Caching{Off: f.off.Steps, OffFor: values.Lists(f.offFor), FreshMounts: f.off.Mounts, Verify: f.verify, Pull: f.pull}
}

// exportFlags say what becomes of the result.
type exportFlags struct {
	tags, annotations, outputs []string
	push, load                 bool
	iidFile, metadataFile      string
}

func (f *exportFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&f.tags, "tag", "t", nil, "name of the image, as name[:tag]")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "annotation of the image, as [PART[[PLATFORM]],…:]KEY=VALUE; PART is manifest, index, manifest-descriptor or index-descriptor")
	flags.StringArrayVarP(&f.outputs, "output", "o", nil, "what to make, as type=TYPE[,dest=PATH][,KEY=VALUE…], a directory, or - for a tar")
	flags.BoolVar(&f.push, "push", false, "push the image: --output=type=registry")
	flags.BoolVar(&f.load, "load", false, "load the image: --output=type=docker")
	flags.StringVar(&f.iidFile, "iidfile", "", "write the image's id to a file")
	flags.StringVar(&f.metadataFile, "metadata-file", "", "write what was built to a file, as JSON")
}

func (f *exportFlags) read() (x build.Export, err error) {
	x = build.Export{Tags: f.tags, IIDFile: f.iidFile, MetadataFile: f.metadataFile}
	for _, tag := range x.Tags {
		if err := build.CheckTag(tag); err != nil {
			return x, app.UsageErrorf("--tag: %w", err)
		}
	}
	for _, v := range f.annotations {
		parsed, err := exporter.ParseAnnotation(v)
		if err != nil {
			return x, app.UsageErrorf("--annotation %q: %w", v, err)
		}
		x.Annotations = append(x.Annotations, parsed...)
	}
	if x.Outputs, err = values.Outputs(f.outputs, f.push, f.load); err != nil || x.IIDFile == "" {
		return x, err
	}
	for _, out := range x.Outputs {
		if out.Type == build.OutputLocal || out.Type == build.OutputTar {
			return x, app.UsageErrorf("--iidfile cannot be written for output type=%s, which is not an image", out.Type)
		}
	}
	return x, nil
}

// runFlags say how RUN runs.
type runFlags struct {
	network        string
	hosts, ulimits []string
	shmSize        string
	cgroupParent   string
	userns         string
	noProcSandbox  bool
	limits         build.Limits
	resources      []string
}

func (f *runFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.network, "network", "", "network of RUN: default, host, none")
	flags.StringArrayVar(&f.hosts, "add-host", nil, "line of /etc/hosts, as HOST:IP")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "resource limit, as NAME=SOFT[:HARD]")
	flags.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm, as 64m")
	flags.StringVar(&f.cgroupParent, "cgroup-parent", "", "control group that each step gets one of its own in, as /builds")
	flags.StringVar(&f.userns, "userns", "", "ids of each RUN: auto for those that /etc/subuid has for root, START:COUNT, or host")
	flags.BoolVar(&f.noProcSandbox, "no-process-sandbox", false, "let each RUN see kiln's own /proc, for containers in which none can be mounted")
	flags.Lookup("userns").NoOptDefVal = "auto"
	f.limits = build.Limits{}
	for _, l := range values.LimitFlags {
		flags.VarP(&values.Limit{Limits: f.limits, Name: l.Name, Kind: l.Kind}, l.Name, l.Shorthand, l.Usage)
	}
	flags.StringArrayVar(&f.resources, "resource", nil, "limit of each RUN, as memory=SIZE: the same as --memory, and so on")
}

func (f *runFlags) read() (r build.Run, err error) {
	r = build.Run{RunOptions: llb.RunOptions{CgroupParent: f.cgroupParent}, Userns: f.userns, NoProcessSandbox: f.noProcSandbox}
	if r.Network, err = values.Network(f.network); err != nil {
		return r, err
	}
	if r.ExtraHosts, err = values.ExtraHosts(f.hosts); err != nil {
		return r, err
	}
	if r.Ulimits, err = values.Ulimits(f.ulimits); err != nil {
		return r, err
	}
	if err := build.CheckUserns(r.Userns); err != nil {
		return r, app.UsageErrorf("--userns %q: %w", r.Userns, err)
	}
	if r.Limits, err = values.Limits(f.limits, f.resources); err != nil {
		return r, err
	}
	r.ShmSize, err = values.ShmSize(f.shmSize)
	return r, err
}

// clientFlags say what a build may use of the client.
type clientFlags struct {
	secrets, agents, allow []string
}

func (f *clientFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.secrets, "secret", nil, "secret for RUN, as id=ID[,src=FILE|,env=VARIABLE]")
	flags.StringArrayVar(&f.agents, "ssh", nil, "ssh agent for RUN and, as default, for git: ID[=SOCKET|KEYFILE,…]")
	flags.StringArrayVar(&f.allow, "allow", nil, "entitlement: network.host, security.insecure, device[=NAME]")
}

func (f *clientFlags) read() (c build.Client, err error) {
	secrets, err := values.Secrets(f.secrets)
	if err != nil {
		return c, err
	}
	c.Secrets = build.Secrets(secrets)
	if c.Agents, err = values.Agents(f.agents); err != nil {
		return c, err
	}
	c.Allow, err = values.Allow(f.allow)
	return c, err
}

// callFlags say what to do with the Dockerfile.
type callFlags struct {
	call  string
	check bool
	// json is set by read: what is printed is JSON.
	json bool
}

func (f *callFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.check, "check", false, "check the Dockerfile and build nothing: --call=check")
	flags.StringVar(&f.call, "call", "build", "what to do: build, check, outline, targets; all but the first with ,format=json")
}

func (f *callFlags) read() (build.Call, error) {
	c, err := parseCall(f.call)
	if err != nil {
		return "", err
	}
	f.json = c.json
	switch {
	case f.check:
		return build.CallCheck, nil
	case c.name == "build":
		return build.CallBuild, nil
	}
	return build.Call(c.name), nil
}

// progressFlags say what is shown.
type progressFlags struct {
	shown   string
	quiet   bool
	explain bool
}

func (f *progressFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.explain, "explain", false, "say of each step that runs what changed since the last build")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the image's id alone")
	app.ProgressFlag(flags, &f.shown)
}

// mode returns the progress mode. --quiet wins, as with docker.
func (f *progressFlags) mode() string { return app.QuietMode(f.quiet, f.shown) }
