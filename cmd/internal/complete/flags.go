package complete

import (
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/spf13/cobra"
)

// ulimits are the limits that --ulimit has, as prlimit(1) knows them.
var ulimits = []string{
	"core=", "cpu=", "data=", "fsize=", "locks=", "memlock=", "msgqueue=", "nice=", "nofile=", "nproc=", "rss=", "rtprio=", "rttime=",
	"sigpending=", "stack=",
}

// flagOf returns what is offered for the value of a flag of a command; nil if nothing is said about the flag.
func flagOf(command, flag string) source {
	switch command + " --" + flag {
	case "save --output", "load --input", "export --output":
		return only(files)
	case "import --id":
		return cacheMounts
	case "save --format":
		return words("docker\tan OCI image layout that docker load reads", "oci\tan OCI image layout")
	case "verify --format":
		return words("text", "json")
	case "show --format":
		return words("text", "json", "raw")
	case "show --type", "ls --type":
		return words("provenance", "sbom")
	case "diff --format":
		return words("text", "json")
	case "inspect --format":
		return words("json")
	case "images --filter", "ls --filter":
		return keys("dangling=true", "dangling=false", "label=", "before=", "since=", "reference=", "until=")
	case "prune --filter":
		return keys("until=")
	case "compose --file":
		return only(files)
	case "run --pull":
		return words("missing", "always", "never")
	}
	switch flag {
	case "root", "project-directory", "keep-failed":
		return only(dirs)
	case "file", "volume", "iidfile", "metadata-file", "env-file", "registry-ca", "sign", "key", "locked":
		return only(files)
	case "progress":
		return words(progress.Modes...)
	case "platform":
		if command == "build" || command == "lock" {
			return list(words(values.KnownPlatforms...))
		}
		return words(values.KnownPlatforms...)
	case "output":
		return output
	case "target":
		return stages
	case "no-cache-filter":
		return list(stages)
	case "build-arg":
		return arguments
	case "build-context":
		return contextNames
	case "secret":
		return mountIDs("secret", "id=")
	case "ssh":
		return mountIDs("ssh", "")
	case "tag":
		return imageNames
	case "network":
		return words(values.Networks...)
	case "allow":
		return words(append(values.Entitlements, values.Frontend)...)
	case "call":
		return words("build", "check\tcheck the Dockerfile", "outline\targuments, secrets and agents of the target",
			"targets\tstages of the Dockerfile")
	case "no-cache":
		return words("true", "false", "mounts")
	case "userns":
		return words("auto", "host")
	case "cache-from":
		return keys("type=registry,ref=", "type=local,src=", "type=s3,bucket=", "type=azblob,account_url=", "type=gha")
	case "cache-to":
		return keys("type=registry,ref=", "type=local,dest=", "type=s3,bucket=", "type=azblob,account_url=", "type=gha", "type=inline")
	case "registry-mirror", "insecure-registry":
		return registries
	case "list":
		return words("targets", "variables")
	case "os":
		return words("linux", "windows")
	case "arch":
		return words("amd64", "arm64", "arm", "386", "ppc64le", "riscv64", "s390x", "loong64")
	case "on-error":
		return words("fail", "ask")
	case "attest":
		return keys(prefixed("type=", values.AttestationTypes)...)
	case "provenance":
		return keys(values.ProvenanceKeys...)
	case "sbom":
		return keys("true", "false", "generator=")
	case "ulimit":
		return keys(ulimits...)
	case "resource":
		return keys(suffixed(values.Resources, "=")...)
	case "profile":
		return profiles
	case "format":
		return words("table", "json")
	case "type":
		return words("image")
	case "annotation":
		return keys("index:", "manifest:", "index-descriptor:", "manifest-descriptor:")
	// What nobody but the user knows.
	case "label", "add-host", "shm-size", "cgroup-parent", "memory", "memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus",
		"cpuset-mems", "cpus", "pids-limit", "step-timeout", "username", "password", "project-name", "max-used-space", "max-size", "max-age", "reserved-space",
		"min-free-space", "entrypoint", "env", "workdir", "user", "hostname", "publish", "stop-signal", "stop-timeout", "mount", "tmpfs",
		"set", "var", "variant", "os-version", "os-features", "owner", "mode":
		return only(none)
	}
	return nil
}

// output offers the keys of --output, and what they can be.
func output(r *Request) ([]string, cobra.ShellCompDirective) {
	if !strings.HasPrefix(r.word, "type=") {
		if !strings.HasPrefix("type=", r.word) {
			return nil, dirs // -o DIRECTORY
		}
		return prefixed("type=", values.OutputTypes), none
	}
	i := strings.LastIndexByte(r.word, ',') + 1
	before, field := r.word[:i], r.word[i:]
	if i == 0 {
		return prefixed("type=", values.OutputTypes), none
	}
	key, _, ok := strings.Cut(field, "=")
	switch {
	case !ok:
		offers := []string{before + "dest=", before + "annotation."}
		for _, key := range values.OutputKeys {
			offers = append(offers, before+key+"=")
		}
		return offers, more
	case key == "compression":
		return prefixed(before+"compression=", blob.Compressions), none
	case key == "dest":
		return nil, files
	case key == "name":
		names, _ := imageNames(r)
		return prefixed(before+"name=", names), none
	case key == "compression-level":
		return nil, none
	}
	return prefixed(before+key+"=", []string{"true", "false"}), none
}

// suffixed returns words with something behind each.
func suffixed(words []string, suffix string) []string {
	var out []string
	for _, w := range words {
		out = append(out, w+suffix)
	}
	return out
}

// prefixed returns words with something before each.
func prefixed(prefix string, words []string) []string {
	var out []string
	for _, w := range words {
		out = append(out, prefix+w)
	}
	return out
}
