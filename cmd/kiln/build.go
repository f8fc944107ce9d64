package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/progress"
	"github.com/spf13/cobra"
)

// buildFlags are the flags of build as written.
type buildFlags struct {
	tags          []string
	file          string
	target        string
	buildArgs     []string
	buildContexts []string
	noCache       noCacheFlag
	explain       bool
	noCacheFilter []string
	verifyCache   bool
	pull          bool
	platforms     []string
	labels        []string
	annotations   []string
	outputs       []string
	push          bool
	load          bool
	iidFile       string
	metadataFile  string
	progress      string
	quiet         bool
	network       string
	addHosts      []string
	ulimits       []string
	shmSize       string
	cgroupParent  string
	userns        string
	noProcSandbox bool
	limits        build.Limits
	resources     []string
	secrets       []string
	agents        []string
	allow         []string
	check         bool
	call          string
}

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [flags] PATH | URL | -",
		Short: "Build an image from a Dockerfile",
		Args:  exactArgs("a PATH, URL or - (the build context)"),
		RunE: a.asRoot(func(cmd *cobra.Command, args []string) error {
			o, err := f.options(args[0])
			if err != nil {
				return err
			}
			if slices.ContainsFunc(o.Outputs, onStdout) && termtext.IsTerminal(os.Stdout) {
				return usageErrorf("--output: an archive is not written to a terminal: give it a dest=, or redirect standard output")
			}
			o.Stdin, o.Debug = cmd.InOrStdin(), a.debug
			call, err := parseCall(f.call)
			if err != nil {
				return err
			}
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				err := a.build(cmd.Context(), k.builder, o, f.mode(), call.json)
				if cmd.Context().Err() == nil {
					if err := k.root.Collect(cmd.Context()); err != nil {
						a.complain("the build is over, and making room after it failed: " + err.Error())
					}
				}
				return err
			})
		}),
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.tags, "tag", "t", nil, "name of the image, as name[:tag]")
	flags.StringVarP(&f.file, "file", "f", "", "the Dockerfile: a file, a URL, or - for standard input (default PATH/Dockerfile)")
	flags.StringVar(&f.target, "target", "", "the stage to build (default the last)")
	flags.StringArrayVar(&f.buildArgs, "build-arg", nil, "value of an ARG, as NAME[=VALUE]")
	flags.StringArrayVar(&f.buildContexts, "build-context", nil, "another context, as NAME=DIRECTORY, NAME=URL, NAME=docker-image://IMAGE or NAME=oci-layout://DIRECTORY")
	flags.Var(&f.noCache, "no-cache", "run every step; with =mounts cache mounts begin empty as well")
	flags.Lookup("no-cache").NoOptDefVal = "true"
	flags.BoolVar(&f.explain, "explain", false, "say of each step that runs what changed since the last build")
	flags.BoolVar(&f.verifyCache, "verify-cache", false, "run cached steps again, and say which make something else; the cache is used all the same")
	flags.StringArrayVar(&f.noCacheFilter, "no-cache-filter", nil, "run every step of these stages, as STAGE,…")
	flags.BoolVar(&f.pull, "pull", false, "ask the registry for newer base images")
	flags.StringArrayVar(&f.platforms, "platform", nil, "what to build for, as os/arch[/variant],… (default $DOCKER_DEFAULT_PLATFORM, else this machine)")
	flags.StringArrayVar(&f.labels, "label", nil, "label of the image, as KEY=VALUE")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "annotation of the image, as [PART[[PLATFORM]],…:]KEY=VALUE; PART is manifest, index, manifest-descriptor or index-descriptor")
	flags.StringArrayVarP(&f.outputs, "output", "o", nil, "what to make, as type=TYPE[,dest=PATH][,KEY=VALUE…], a directory, or - for a tar")
	flags.BoolVar(&f.push, "push", false, "push the image: --output=type=registry")
	flags.BoolVar(&f.load, "load", false, "load the image: --output=type=docker")
	flags.StringVar(&f.iidFile, "iidfile", "", "write the image's id to a file")
	flags.StringVar(&f.metadataFile, "metadata-file", "", "write what was built to a file, as JSON")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the image's id alone")
	flags.StringVar(&f.network, "network", "", "network of RUN: default, host, none")
	flags.StringArrayVar(&f.addHosts, "add-host", nil, "line of /etc/hosts, as HOST:IP")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "resource limit, as NAME=SOFT[:HARD]")
	flags.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm, as 64m")
	flags.StringVar(&f.cgroupParent, "cgroup-parent", "", "control group that each step gets one of its own in, as /builds")
	flags.StringVar(&f.userns, "userns", "", "ids of each RUN: auto for those that /etc/subuid has for root, START:COUNT, or host")
	flags.BoolVar(&f.noProcSandbox, "no-process-sandbox", false, "let each RUN see kiln's own /proc, for containers in which none can be mounted")
	flags.Lookup("userns").NoOptDefVal = "auto"
	f.limits = build.Limits{}
	for _, l := range limitFlags {
		flags.VarP(&limitFlag{limits: f.limits, name: l.name, kind: l.kind}, l.name, l.shorthand, l.usage)
	}
	flags.StringArrayVar(&f.resources, "resource", nil, "limit of each RUN, as memory=SIZE: the same as --memory, and so on")
	flags.StringArrayVar(&f.secrets, "secret", nil, "secret for RUN, as id=ID[,src=FILE|,env=VARIABLE]")
	flags.StringArrayVar(&f.agents, "ssh", nil, "ssh agent for RUN and, as default, for git: ID[=SOCKET|KEYFILE,…]")
	flags.StringArrayVar(&f.allow, "allow", nil, "entitlement: network.host, security.insecure, device[=NAME]")
	flags.BoolVar(&f.check, "check", false, "check the Dockerfile and build nothing: --call=check")
	flags.StringVar(&f.call, "call", "build", "what to do: build, check, outline, targets; all but the first with ,format=json")
	progressFlag(cmd, &f.progress)
	addUnsupported(flags, slices.Clone(unsupportedBuildFlags))
	return cmd
}

// mode returns the progress mode that the flags ask for. --quiet wins, as with docker.
func (f *buildFlags) mode() string { return quietMode(f.quiet, f.progress) }

// options returns what the flags ask for.
func (f *buildFlags) options(contextDir string) (o build.Options, err error) {
	isDir, err := build.CheckContext(contextDir)
	if err != nil {
		return o, usageErrorf("build context: %w", err)
	}
	if contextDir == "-" && f.file == "-" {
		return o, usageErrorf("standard input cannot be both the build context and the Dockerfile (-f -)")
	}
	o = build.Options{
		ContextDir:    contextDir,
		Dockerfile:    f.file,
		Tags:          f.tags,
		Target:        f.target,
		NoCache:       f.noCache.steps,
		FreshCaches:   f.noCache.mounts,
		NoCacheFilter: splitLists(f.noCacheFilter),
		Pull:          f.pull,
		IIDFile:       f.iidFile,
		MetadataFile:  f.metadataFile,
	}
	o.Explain, o.VerifyCache = f.explain, f.verifyCache
	call, err := parseCall(f.call)
	if err != nil {
		return o, err
	}
	o.Check = f.check || call.name == "check"
	if call.name == "outline" || call.name == "targets" {
		o.Describe = call.name
	}
	for _, tag := range o.Tags {
		if err := build.CheckTag(tag); err != nil {
			return o, usageErrorf("--tag: %w", err)
		}
	}
	if o.BuildArgs, err = parseBuildArgs(f.buildArgs); err != nil {
		return o, err
	}
	if o.BuildContexts, err = parseBuildContexts(f.buildContexts); err != nil {
		return o, err
	}
	if o.Platforms, err = parsePlatforms(f.platforms); err != nil {
		return o, err
	}
	if o.Labels, err = parseLabels(f.labels); err != nil {
		return o, err
	}
	for _, v := range f.annotations {
		parsed, err := exporter.ParseAnnotation(v)
		if err != nil {
			return o, usageErrorf("--annotation %q: %w", v, err)
		}
		o.Annotations = append(o.Annotations, parsed...)
	}
	if o.Outputs, err = parseOutputs(f.outputs, f.push, f.load); err != nil {
		return o, err
	}
	if o.Network, err = parseNetwork(f.network); err != nil {
		return o, err
	}
	if o.ExtraHosts, err = parseExtraHosts(f.addHosts); err != nil {
		return o, err
	}
	if o.Ulimits, err = parseUlimits(f.ulimits); err != nil {
		return o, err
	}
	o.CgroupParent = f.cgroupParent
	o.NoProcessSandbox = f.noProcSandbox
	if o.Userns = f.userns; build.CheckUserns(o.Userns) != nil {
		return o, usageErrorf("--userns %q: %w", o.Userns, build.CheckUserns(o.Userns))
	}
	if o.Limits, err = parseLimits(f.limits, f.resources); err != nil {
		return o, err
	}
	if o.ShmSize, err = parseShmSize(f.shmSize); err != nil {
		return o, err
	}
	if o.Secrets, err = parseSecrets(f.secrets); err != nil {
		return o, err
	}
	if o.Agents, err = parseAgents(f.agents); err != nil {
		return o, err
	}
	if o.Allow, err = parseAllow(f.allow); err != nil {
		return o, err
	}
	// Who asks for the host's network on the command line has allowed it.
	if o.Network == llb.NetworkHost && !slices.Contains(o.Allow, "network.host") {
		o.Allow = append(o.Allow, "network.host")
	}
	if o.IIDFile != "" {
		for _, out := range o.Outputs {
			if out.Type == build.OutputLocal || out.Type == build.OutputTar {
				return o, usageErrorf("--iidfile cannot be written for output type=%s, which is no image", out.Type)
			}
		}
	}
	if isDir {
		if err := checkDir(o.ContextDir); err != nil {
			return o, usageErrorf("build context: %w", err)
		}
	}
	return o, o.Absolute()
}

// build runs a build and prints its result; a call other than build is printed as JSON if asJSON is set.
func (a *app) build(ctx context.Context, b *build.Builder, o build.Options, mode string, asJSON bool) error {
	result := &build.Result{}
	shown, _ := progressMode(mode)
	quiet := shown == "quiet"
	err := a.withProgress(ctx, mode, func(ctx context.Context, s *events.Stream) (err error) {
		result, err = b.Build(ctx, o, s)
		return err
	})
	if o.Check {
		return a.printCheck(ctx, result, err, asJSON)
	}
	if !quiet {
		a.printWarnings(ctx, result)
		a.printVerified(result)
	}
	if err != nil {
		return &buildError{err: err, dockerfile: result.Dockerfile, name: result.DockerfileName}
	}
	if o.Describe != "" {
		return a.printDescription(result, asJSON)
	}
	if !quiet {
		return nil
	}
	if result.ImageID == "" || slices.ContainsFunc(o.Outputs, onStdout) {
		return nil
	}
	_, err = fmt.Fprintln(a.stdout, result.ImageID)
	return err
}

// onStdout reports whether an output goes to standard output.
func onStdout(o build.Output) bool { return o.Dest == "-" }

// printVerified says which steps made something else when they ran again.
func (a *app) printVerified(r *build.Result) {
	if len(r.Verified) == 0 {
		return
	}
	var b strings.Builder
	differ := 0
	for _, v := range r.Verified {
		differences := progress.Differences(v.Again)
		if len(differences) == 0 {
			continue
		}
		differ++
		fmt.Fprintf(&b, "  %s\n", termtext.Line(shorten(v.Step)))
		for _, d := range differences {
			fmt.Fprintf(&b, "    %s\n", termtext.Line(d))
		}
	}
	_, _ = fmt.Fprintf(a.stderr, "\n%s ran again, %d made something else\n%s", count(len(r.Verified), "cached step"), differ, b.String())
}
