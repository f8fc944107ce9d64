package buildcmd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/signing"
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
	repro    reproducibleFlags
}

func (f *buildFlags) add(flags *pflag.FlagSet) {
	f.export.add(flags)
	f.repro.add(flags)
	help.Group(flags, "Result")
	f.source.add(flags)
	help.Group(flags, "Source")
	f.target.add(flags)
	help.Group(flags, "Target")
	f.caching.add(flags)
	help.Group(flags, "Cache")
	f.run.add(flags)
	help.Group(flags, "RUN")
	f.client.add(flags)
	help.Group(flags, "Secrets and permissions")
	f.call.add(flags)
	help.Group(flags, "Check without building")
	f.progress.add(flags)
	help.Group(flags, "Progress")
}

// options returns what the flags ask for.
func (f *buildFlags) options(context string) (o build.Options, err error) {
	o.Explain, o.Reproducible = f.progress.explain, f.repro.on.Value
	if o.Source, err = f.source.read(context); err != nil {
		return o, err
	}
	if o.Pins, err = f.source.pins(); err != nil {
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
	if o.Cache, err = f.caching.read(); err != nil {
		return o, err
	}
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
	file   string
	named  []string
	locked values.Optional
}

func (f *sourceFlags) add(flags *pflag.FlagSet) {
	f.addNames(flags)
	f.addLocked(flags)
}

// addLocked adds --locked.
func (f *sourceFlags) addLocked(flags *pflag.FlagSet) {
	flags.Var(&f.locked, "locked", "build with what Dockerfile.lock says of base images, URLs and git refs, and with nothing else (default what kiln.toml says)")
	flags.Lookup("locked").NoOptDefVal = "true"
}

// pins returns which sources the build may use.
func (f *sourceFlags) pins() (p sources.Pins, err error) {
	p.Locked = f.locked.Value
	p.Policy, err = values.SourcePolicy()
	return p, err
}

// addNames adds the flags that say where the Dockerfile and its contexts are.
func (f *sourceFlags) addNames(flags *pflag.FlagSet) {
	flags.StringVarP(&f.file, "file", "f", "", "`FILE` Dockerfile: a path, a URL, or - for standard input (default PATH/Dockerfile)")
	flags.StringArrayVar(&f.named, "build-context", nil, "`NAME=CONTEXT` additional context: a directory, a URL, docker-image://IMAGE or oci-layout://DIR")
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
			hint := ""
			if info, err := os.Stat(context); err == nil && info.Mode().IsRegular() && f.file == "" {
				hint = fmt.Sprintf("; if it is the Dockerfile: kiln build -f %s %s", context, filepath.Dir(context))
			}
			return s, app.UsageErrorf("build context: %w%s", err, hint)
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
	f.addScope(flags)
	flags.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` label of the image")
}

// addScope adds the flags that decide what a Dockerfile needs.
func (f *targetFlags) addScope(flags *pflag.FlagSet) {
	flags.StringVar(&f.stage, "target", "", "`STAGE` stage to build (default the last)")
	flags.StringArrayVar(&f.args, "build-arg", nil, "`NAME[=VALUE]` value of an ARG; without a value, that of the environment variable")
	flags.StringArrayVar(&f.platforms, "platform", nil, "`OS/ARCH,...` platforms to build for, such as linux/amd64,linux/arm64 (default $DOCKER_DEFAULT_PLATFORM, else that of this host)")
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
	twice  bool
	pull   bool
	from   []string
	to     []string
}

func (f *cachingFlags) add(flags *pflag.FlagSet) {
	flags.Var(&f.off, "no-cache", "`mounts` run every step, even if it is cached; with =mounts, cache mounts begin empty too")
	flags.Lookup("no-cache").NoOptDefVal = "true"
	flags.StringArrayVar(&f.offFor, "no-cache-filter", nil, "`STAGE,...` run every step of these stages")
	flags.StringArrayVar(&f.from, "cache-from", nil, "`CACHE` to read: type=registry,ref=NAME, type=local,src=DIRECTORY, type=s3,bucket=NAME,region=REGION, type=azblob,account_url=URL, type=gha, "+
		"or a NAME in a registry; verify=PUBLICKEY uses only what its owner has signed; mounts=ID;... or all restores cache mounts")
	flags.StringArrayVar(&f.to, "cache-to", nil, "`CACHE` to publish: type=registry,ref=NAME, type=local,dest=DIRECTORY, type=s3,bucket=NAME,region=REGION, type=azblob,account_url=URL, type=gha or type=inline; "+
		"mode=max exports all steps, not only those in the image; sign=KEY signs them; mounts=ID;... or all exports the files of cache mounts")
	flags.BoolVar(&f.verify, "verify-cache", false, "run cached steps again, and report those with another result")
	flags.BoolVar(&f.twice, "check-reproducible", false, "run every step twice, and fail, exporting nothing, if one makes something else: names the files and the kinds of difference")
	flags.BoolVar(&f.pull, "pull", false, "check the registry for newer base images")
}

func (f *cachingFlags) read() (c build.Caching, err error) {
	c = build.Caching{Off: f.off.Steps, OffFor: values.Lists(f.offFor), FreshMounts: f.off.Mounts, Verify: f.verify, Twice: f.twice, Pull: f.pull}
	if c.From, err = values.Caches(f.from, false); err != nil {
		return c, err
	}
	c.To, err = values.Caches(f.to, true)
	return c, err
}

// exportFlags say what becomes of the result.
type exportFlags struct {
	tags, annotations, outputs []string
	push, load                 bool
	iidFile, metadataFile      string
	attestations               []string
	provenance, sbom           string
	// sign are files with keys, and signers keys that an image is signed with if it is pushed.
	sign    []string
	signers []*signing.PrivateKey
}

func (f *exportFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&f.tags, "tag", "t", nil, "`NAME[:TAG]` name of the image")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "`[PART:]KEY=VALUE` annotation of the image's manifest, or of PART: manifest, index, manifest-descriptor or index-descriptor, each also with [PLATFORM]")
	flags.StringArrayVarP(&f.outputs, "output", "o", nil, "`OUTPUT` where the result goes: type=TYPE[,dest=PATH][,KEY=VALUE...], a directory, or - for a tar archive on standard output; TYPE is image, registry, docker, containers-storage, oci, local, tar or cacheonly")
	flags.BoolVar(&f.push, "push", false, "push the image, as --output=type=registry does")
	flags.BoolVar(&f.load, "load", false, "put the image into the engine at $DOCKER_HOST, as --output=type=docker does")
	flags.StringArrayVar(&f.attestations, "attest", nil, "`type=TYPE[,KEY=VALUE...]` attestation to attach: provenance or sbom")
	flags.StringVar(&f.provenance, "provenance", "", "`true|KEY=VALUE,...` attach the provenance of the image: mode=min|max, version=v1|v0.2, builder-id=URI, inline-only=true, reproducible=true, complete-materials=true, anonymous=true")
	flags.StringVar(&f.sbom, "sbom", "", "`true|generator=IMAGE` attach a software bill of materials")
	values.SignFlag(flags, &f.sign)
	flags.StringVar(&f.iidFile, "iidfile", "", "`FILE` write the image ID to FILE")
	flags.StringVar(&f.metadataFile, "metadata-file", "", "`FILE` write the digests and names of the result to FILE, as JSON")
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
	if x.Attest, err = values.Attestations(f.attestations, f.provenance, f.sbom); err != nil {
		return x, err
	}
	if x.MetadataFile != "" {
		if x.MetadataProvenance, err = values.MetadataProvenance(); err != nil {
			return x, err
		}
	}
	if x.Outputs, err = values.Outputs(f.outputs, f.push, f.load); err != nil {
		return x, err
	}
	if slices.ContainsFunc(x.Outputs, func(o build.Output) bool { return o.Type == build.OutputRegistry }) {
		x.Sign = f.signers
	} else if len(f.sign) > 0 {
		return x, app.UsageErrorf("--sign: what is pushed is signed, and nothing is: give --push, or an output type=registry")
	}
	if len(f.sign) > 0 {
		if x.Sign, err = signing.ReadPrivateKeys(f.sign); err != nil {
			return x, &input.Error{Err: err}
		}
	}
	if err := values.CheckDests(x.Outputs); err != nil {
		return x, app.UsageErrorf("--output: %w", err)
	}
	for flag, path := range map[string]string{"iidfile": x.IIDFile, "metadata-file": x.MetadataFile} {
		if path == "" {
			continue
		}
		if err := values.CheckFile(path); err != nil {
			return x, app.UsageErrorf("--%s: %w", flag, err)
		}
	}
	if x.IIDFile == "" {
		return x, nil
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
	limits         confine.Limits
	resources      []string
}

func (f *runFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.network, "network", "", "`MODE` network of RUN: default, host or none")
	flags.StringArrayVar(&f.hosts, "add-host", nil, "`HOST:IP` additional line of /etc/hosts; host-gateway is the IP of this host")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "`NAME=SOFT[:HARD]` resource limit of processes, such as nofile=1024")
	flags.StringVar(&f.shmSize, "shm-size", "", "`SIZE` size of /dev/shm (default 64m)")
	flags.StringVar(&f.cgroupParent, "cgroup-parent", "", "`PATH` parent of the control groups of RUN, such as /builds")
	flags.StringVar(&f.userns, "userns", "", "`IDS` run each RUN in a user namespace: with the IDs that /etc/subuid has for root (auto), with START:COUNT, or not (host)")
	flags.BoolVar(&f.noProcSandbox, "no-process-sandbox", false, "let each RUN see kiln's own /proc, for containers in which no other can be mounted")
	flags.Lookup("userns").NoOptDefVal = "auto"
	f.limits = confine.Limits{}
	for _, l := range values.LimitFlags {
		flags.VarP(&values.Limit{Limits: f.limits, Name: l.Name, Kind: l.Kind}, l.Name, l.Shorthand, l.UsageOf("each RUN"))
	}
	flags.StringArrayVar(&f.resources, "resource", nil, "`NAME=LIMIT` limit of each RUN: memory=2g is --memory 2g, and so on")
}

func (f *runFlags) read() (r build.Run, err error) {
	r = build.Run{
		RunOptions: llb.RunOptions{CgroupParent: f.cgroupParent},
		Request:    confine.Request{Userns: f.userns, NoProcessSandbox: f.noProcSandbox},
	}
	if r.Network, err = values.Network(f.network); err != nil {
		return r, err
	}
	if r.ExtraHosts, err = values.ExtraHosts(f.hosts); err != nil {
		return r, err
	}
	if r.Ulimits, err = values.Ulimits(f.ulimits); err != nil {
		return r, err
	}
	if err := confine.CheckUserns(r.Userns); err != nil {
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
	// entitlements are those that a file asks for, and frontends says that frontends are allowed whatever it says.
	entitlements []string
	frontends    bool
}

func (f *clientFlags) add(flags *pflag.FlagSet) {
	f.addKeys(flags)
	flags.StringArrayVar(&f.allow, "allow", nil, "`ENTITLEMENT` allow RUN to use network.host, security.insecure or device[=NAME]; "+
		"frontend allows the Dockerfile to name an image as its frontend")
}

// addKeys adds the flags for what servers ask for.
func (f *clientFlags) addKeys(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.secrets, "secret", nil, "`id=ID[,src=FILE]` secret for RUN --mount=type=secret, from a file or, with env=NAME, an environment variable (default the variable or file ID)")
	flags.StringArrayVar(&f.agents, "ssh", nil, "`ID[=PATH,...]` ssh agent for RUN --mount=type=ssh and, with the ID default, for git: a socket or unencrypted key files (default $SSH_AUTH_SOCK)")
}

func (f *clientFlags) read() (c build.Client, err error) {
	secrets, err := values.Secrets(f.secrets)
	if err != nil {
		return c, err
	}
	for _, s := range secrets {
		if err := s.Check(); err != nil {
			return c, app.UsageErrorf("--secret id=%s: %w", s.ID, err)
		}
	}
	c.Secrets = build.Secrets(secrets)
	if c.Agents, err = values.Agents(f.agents); err != nil {
		return c, err
	}
	if slices.Contains(f.entitlements, values.Frontend) {
		return c, app.UsageErrorf("a file cannot allow frontends that are images: the command line does, by --allow %s, or kiln.toml",
			values.Frontend)
	}
	var frontends bool
	c.Allow, frontends, err = values.Allow(slices.Concat(f.allow, f.entitlements))
	c.Frontends = f.frontends || frontends
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
	flags.BoolVar(&f.check, "check", false, "check the Dockerfile without building, as --call=check does")
	flags.StringVar(&f.call, "call", "build", "`METHOD` build, check, outline (arguments, secrets) or targets (stages); the last three also with ,format=json")
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

// reproducibleFlags say whether the result may depend on more than what is built.
type reproducibleFlags struct{ on values.Optional }

func (f *reproducibleFlags) add(flags *pflag.FlagSet) {
	flags.Var(&f.on, "reproducible", "give the same digest on every host: times are SOURCE_DATE_EPOCH, by default the time of the context's commit")
	flags.Lookup("reproducible").NoOptDefVal = "true"
}

// progressFlags say what is shown.
type progressFlags struct {
	shown   string
	quiet   bool
	explain bool
}

func (f *progressFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.explain, "explain", false, "tell for each step that runs what changed since the last build")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print only the ID of each image")
	app.ProgressFlag(flags, &f.shown)
}

// mode returns the progress mode. --quiet wins, as with docker.
func (f *progressFlags) mode() string { return app.QuietMode(f.quiet, f.shown) }
