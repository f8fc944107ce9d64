// Package dialect knows commands and flags of docker, buildx, compose, buildah, podman, kaniko and skopeo that kiln does not have, and what
// does their work here. It does not know kiln's commands.
package dialect

import (
	"slices"
	"strings"
)

// entry is what to do in place of what is named.
type entry struct {
	// on are the commands that have the flags, separated by spaces; "" for all.
	on string
	// names are the flags or commands, separated by spaces or, if they have spaces in them, by commas.
	names string
	say   string
}

// Command returns what does the work of a command that kiln does not have, "buildx ls", or "".
func Command(path string) string {
	for _, e := range commands() {
		if slices.Contains(strings.Split(e.names, ","), path) {
			return e.say
		}
	}
	return ""
}

// Flag returns what to use in place of a flag, "--layers" or "-d", which the command of a path, "image build", does not have, or "".
func Flag(path, flag string) string {
	// docker's groups have the same commands under another name.
	for _, group := range []string{"image ", "buildx ", "builder ", "system "} {
		path = strings.TrimPrefix(path, group)
	}
	for _, e := range flags() {
		if slices.Contains(strings.Fields(e.names), flag) && (e.on == "" || slices.Contains(strings.Split(e.on, ","), path)) {
			return e.say
		}
	}
	return ""
}

const (
	engine     = "containers are run by an engine such as docker or podman"
	noDaemon   = "kiln has no daemon, and works in the directory that --root names"
	noBuilders = "kiln has no builders: kiln build does the work itself"
	noTrust    = "kiln does not sign or verify signatures; leave the flag out"
	insecure   = "use --insecure-registry HOST, which is for that registry alone"
	authority  = `use --registry-ca [HOST=]FILE for an authority, and keypair of [registry."HOST"] in kiln.toml for a client certificate`
	onlyBox    = "kiln has a sandbox of its own for RUN; leave the flag out"
	oneLayer   = "kiln makes a layer of each instruction: FROM scratch and COPY --from=STAGE / / make an image of one layer"
)

// commands are those of other tools. They are made when they are asked for, so that no other start of kiln pays for them.
func commands() []entry {
	return []entry{
		{names: "info,system info", say: "kiln doctor reports what the host supports, and kiln version the version"},
		{names: "buildx ls,buildx use,buildx create,buildx rm,buildx inspect,buildx stop", say: noBuilders},
		{names: "buildx history,buildx history ls,buildx history inspect,buildx history logs", say: "kiln explain tells about past builds"},
		{names: "import,image import", say: "ADD archive.tar / after FROM scratch makes an image of an archive"},
		{names: "commit", say: "kiln has no containers, and a Dockerfile says what an image is made of"},
		{names: "create,ps,exec,start,stop,restart,kill,logs,attach,container,network,volume,stats,top,wait,port,pause,unpause,rename,update," +
			"export,containers,mount,umount,unshare", say: engine},
		{names: "compose up,compose down,compose run,compose start,compose stop,compose ps,compose logs,compose exec,compose restart",
			say: "services are run by an engine such as docker or podman; kiln compose build builds their images"},
		{names: "compose push", say: "kiln compose build --push builds and pushes the images of services"},
		{names: "compose pull", say: "kiln pull fetches an image"},
		{names: "bud,build-using-dockerfile", say: "kiln build builds a Dockerfile"},
		{names: "from,add,copy,config,entrypoint", say: "a Dockerfile says what an image is made of, and kiln build builds it"},
		{names: "context,swarm,stack,service,node,plugin,events,secret", say: noDaemon},
		{names: "search", say: "the web site of a registry has a search; kiln imagetools inspect shows an image of a registry"},
		{names: "trust", say: "kiln does not sign or verify signatures"},
		{names: "list-tags,delete,sync", say: "skopeo does that; kiln imagetools create copies images between registries"},
	}
}

// flags are those of other tools. A flag of kiln in a sentence is one that the command has.
func flags() []entry {
	return []entry{
		// kaniko
		{"build", "--destination -d", "use --tag NAME --push"},
		{"build", "--context", "the context is an argument: kiln build DIRECTORY, or a URL"},
		{"build", "--dockerfile", "use --file"},
		{"build", "--context-sub-path", "a URL names it: https://HOST/REPOSITORY.git#BRANCH:DIRECTORY"},
		{"build", "--no-push", "nothing is pushed without --push; leave the flag out"},
		{"build", "--tar-path --tarPath", "use --output type=docker,dest=FILE"},
		{"build", "--oci-layout-path", "use --output type=oci,dest=DIRECTORY,tar=false"},
		{"build", "--cache", "steps are cached unless --no-cache is given; leave the flag out"},
		{"build", "--cache-dir --kaniko-dir", "the cache is in the directory that --root names"},
		{"build", "--cache-repo", "use --cache-from NAME and --cache-to NAME for a cache in a registry"},
		{"build", "--cache-ttl", "use --cache-to type=registry,ref=NAME,max-age=AGE"},
		{"build", "--cache-copy-layers --cache-run-layers --compressed-caching", "all steps are cached; leave the flag out"},
		{"build", "--snapshot-mode --snapshotMode --use-new-run", "kiln compares the contents of files; leave the flag out"},
		{"build", "--single-snapshot", oneLayer},
		{"build", "--digest-file --image-name-with-digest-file --image-name-tag-with-digest-file",
			"use --metadata-file, which has names and digests"},
		{"build", "--custom-platform --customPlatform --arch --os --variant", "use --platform"},
		{"build", "--skip-unused-stages --cleanup", "kiln always does that; leave the flag out"},
		{"build", "--bucket -b", "storage buckets are no contexts: a program of the cloud can send one to kiln build - on standard input"},
		{"build", "--git", "a URL names the branch: https://HOST/REPOSITORY.git#BRANCH"},
		{"build", "--no-push-cache", "no cache is pushed without --cache-to; leave the flag out"},
		{"build", "--force --force-build-metadata", "kiln does not need it; leave the flag out"},
		{"build", "--ignore-path", "use RUN --mount=type=tmpfs,target=PATH in the Dockerfile for what is not to be in the image"},
		{"build", "--ignore-var-run --whitelist-var-run", "kiln mounts nothing in /var/run, and what a RUN writes there is in the image; leave the flag out"},
		{"build", "--push-ignore-immutable-tag-errors", "kiln imagetools inspect NAME says whether the tag is there"},
		{"build", "--skip-push-permission-check", "kiln asks the registry before it builds; leave the flag out"},
		{"", "--skip-default-registry-fallback", "a registry whose mirrors do not have an image is asked itself; leave the flag out"},
		{"", "--insecure --insecure-pull --skip-tls-verify --skip-tls-verify-pull --skip-tls-verify-registry --tls-verify --src-tls-verify " +
			"--dest-tls-verify", insecure},
		{"", "--registry-certificate --registry-client-cert --cert-dir", authority},
		{"", "--registry-map", "use --registry-mirror [HOST=]MIRROR"},
		{"", "--push-retry --image-download-retry --image-fs-extract-retry --retry --retry-delay",
			"kiln tries again by itself; leave the flag out"},
		{"", "--verbosity --log-level -l", "use --debug, which prints more"},
		{"build", "--log-format --log-timestamp", "use --progress rawjson"},

		// buildah and podman
		{"build", "--layers", "steps are cached unless --no-cache is given; leave the flag out"},
		{"build", "--format", "use --output type=image,oci-mediatypes=false for docker's media types; those of OCI are the default"},
		{"build", "--squash-all", oneLayer},
		{"build", "--manifest", "use --tag NAME, and --platform with all platforms"},
		{"build", "--all-platforms", "use --platform with all platforms"},
		{"build", "--jobs", "steps that do not depend on each other run at the same time; leave the flag out"},
		{"build", "--timestamp --source-date-epoch", "use --build-arg SOURCE_DATE_EPOCH=TIME"},
		{"build", "--rewrite-timestamp", "use --output type=image,rewrite-timestamp=true"},
		{"build", "--compression --compression-format", "use --output type=registry,compression=zstd"},
		{"build", "--compression-level", "use --output type=registry,compression=zstd,compression-level=N"},
		{"build", "--disable-compression", "use --output type=oci,dest=FILE,compression=uncompressed; layers in the store are uncompressed"},
		{"build", "--ignorefile", "name the file .dockerignore, or DOCKERFILE.dockerignore beside the Dockerfile"},
		{"build", "--volume -v", "use RUN --mount=type=bind with --build-context NAME=DIRECTORY"},
		{"build", "--env -e", "use --build-arg with ARG in the Dockerfile, or ENV"},
		{"build", "--from", "use ARG in the Dockerfile before FROM, with --build-arg"},
		{"build", "--cpus", "use --cpu-quota, in microseconds of processor time for each 100000: two processors are 200000"},
		{"build", "--device", "use RUN --device in the Dockerfile, with --allow device=NAME"},
		{"build", "--cap-add --cap-drop --privileged", "use RUN --security=insecure in the Dockerfile, with --allow security.insecure"},
		{"build", "--dns --dns-search --dns-option", "RUN uses the name servers of the host; --add-host adds single names"},
		{"build", "--userns-uid-map --userns-gid-map --userns-uid-map-user --userns-gid-map-group", "use --userns START:COUNT"},
		{"build", "--runtime --runtime-flag --hooks-dir", onlyBox},
		{"build", "--pull-always", "use --pull"},
		{"build", "--pull-never", "base images are fetched only if they are missing, unless --pull is given; leave the flag out"},
		{"", "--authfile", "set $REGISTRY_AUTH_FILE, or use kiln login"},
		{"", "--creds --src-creds --dest-creds", "use kiln login"},
		{"", "--signature-policy --sign-by --sign-passphrase-file --disable-content-trust", noTrust},
		{"", "--storage-driver --storage-opt --runroot", "use --root DIR; kiln finds out what its file system can do"},

		// docker, buildx and compose
		{"build", "--stream --use-new-builder", "kiln reads the context in place; leave the flag out"},
		{"build", "--print", "use --call outline or --call targets"},
		{"build", "--lint", "use --check"},
		{"build", "--name", "use --tag"},
		{"build,compose build", "--detach", "a build ends with its command; run it in the background of the shell"},
		{"compose build", "--builder", "kiln has no builders; leave the flag out"},
		{"compose build", "--parallel --compress --force-rm --rm", "kiln always does what that asks for; leave the flag out"},
		{"compose build", "--tag -t", "image: and build.tags: of the compose file name the images"},
		{"compose build", "--check --print", "use kiln build --check with the Dockerfile of a service"},
		{"", "--host -H --tls --tlscacert --tlscert --tlskey --tlsverify", noDaemon},
		{"", "--config", "set $DOCKER_CONFIG for credentials, or $KILN_CONFIG for kiln.toml"},
		{"push,pull", "--all-tags -a", "name each tag: kiln works on one name at a time"},
		{"push", "--platform", "use kiln build --platform, whose images are pushed as a whole"},
		{"inspect", "--size -s", "kiln images has the size of images, and kiln du that of the store"},
		{"prune", "--volumes", "kiln has no volumes; cache mounts are part of the cache"},
		{"du", "--format", "kiln images --format has the sizes of images"},
		{"version", "--format -f", "kiln --version prints the version alone"},
	}
}

// Flags calls f with each flag that is known, the commands that it is about, "" for all, and what is said of it.
func Flags(f func(on, flag, say string)) {
	for _, e := range flags() {
		for _, name := range strings.Fields(e.names) {
			for _, on := range strings.Split(e.on, ",") {
				f(on, name, e.say)
			}
		}
	}
}

// Commands calls f with each command that is known, and what is said of it.
func Commands(f func(path, say string)) {
	for _, e := range commands() {
		for _, path := range strings.Split(e.names, ",") {
			f(path, e.say)
		}
	}
}
