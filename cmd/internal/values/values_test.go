package values

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/llb"
)

// check compares what a parser made of its input. A wanted error is a part of its text.
func check(t *testing.T, in any, got any, err error, want any, wantErr string) {
	t.Helper()
	if wantErr != "" {
		if err == nil || !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%q: error %v, want %q", in, err, wantErr)
		} else if !errors.As(err, new(*input.Error)) {
			t.Errorf("%q: the error is no error of usage: %v", in, err)
		}
		return
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q: got %+v, %v; want %+v", in, got, err, want)
	}
}

func TestOutputs(t *testing.T) {
	type attrs = map[string]string
	for _, tc := range []struct {
		in         []string
		push, load bool
		want       []build.Output
		err        string
	}{
		{in: nil},
		{in: []string{"out/dir"}, want: []build.Output{{Type: "local", Dest: "out/dir", Attrs: attrs{}}}},
		{in: []string{"-"}, want: []build.Output{{Type: "tar", Dest: "-", Attrs: attrs{}}}},
		{in: []string{"type=oci,dest=a b,tar=false"}, want: []build.Output{{Type: "oci", Dest: "a b", Attrs: attrs{"tar": "false"}}}},
		{in: []string{`type=image,"name=a,b",Push=true`}, want: []build.Output{{Type: "registry", Attrs: attrs{"name": "a,b"}}}},
		{in: []string{"type=image,push=false"}, want: []build.Output{{Type: "image", Attrs: attrs{}}}},
		{in: []string{"type=tar"}, want: []build.Output{{Type: "tar", Dest: "-", Attrs: attrs{}}}},
		{in: []string{"type=docker", "type=cacheonly"}, want: []build.Output{{Type: "docker", Attrs: attrs{}}, {Type: "cacheonly", Attrs: attrs{}}}},
		{push: true, want: []build.Output{{Type: "registry", Attrs: attrs{}}}},
		{in: []string{"type=image,name=x"}, push: true, want: []build.Output{{Type: "registry", Attrs: attrs{"name": "x"}}}},
		{in: []string{"type=local,dest=d"}, push: true, want: []build.Output{{Type: "local", Dest: "d", Attrs: attrs{}}, {Type: "registry", Attrs: attrs{}}}},
		{load: true, want: []build.Output{{Type: "docker", Attrs: attrs{}}}},
		{in: []string{"type=docker"}, load: true, want: []build.Output{{Type: "docker", Attrs: attrs{}}}},
		{in: []string{"type=docker,dest=f"}, load: true, want: []build.Output{{Type: "docker", Dest: "f", Attrs: attrs{}}, {Type: "docker", Attrs: attrs{}}}},
		{in: []string{""}, err: "it is empty"},
		{in: []string{"type=oci,tar"}, err: `"tar" is not key=value`},
		{in: []string{"a=b,c=d"}, err: "type= is missing"},
		{in: []string{"type=local"}, err: "needs dest="},
		{in: []string{"type=image,dest=x"}, err: "has no dest"},
		{in: []string{"type=image,push=maybe"}, err: "true or false"},
		{in: []string{`type=oci,"dest=x`}, err: "comma separated list"},
		{in: []string{"-", "type=docker,dest=-"}, err: "only one output"},
	} {
		got, err := Outputs(tc.in, tc.push, tc.load)
		check(t, tc.in, got, err, tc.want, tc.err)
	}
}

func TestPlatforms(t *testing.T) {
	for _, tc := range []struct {
		in   []string
		env  string
		want string
		err  string
	}{
		{},
		{in: []string{"linux/amd64,linux/arm64", "linux/aarch64"}, want: "linux/amd64 linux/arm64"},
		{in: []string{"linux/arm64/v8", "linux/x86_64", "linux/arm"}, want: "linux/arm64 linux/amd64 linux/arm/v7"},
		{env: "linux/s390x", want: "linux/s390x"},
		{in: []string{"linux/riscv64"}, env: "linux/s390x", want: "linux/riscv64"},
		{in: []string{"local,local"}, want: llb.Host().String()},
		{in: []string{"windows(10.0.20348)/amd64,Windows(10.0.20348)/x86_64", "windows/amd64"}, want: "windows(10.0.20348)/amd64 windows/amd64"},
		{in: []string{"windows(10.0.20348/amd64"}, err: "--platform"},
		{in: []string{"windows()/amd64"}, err: "--platform"},
		{in: []string{"linux/"}, err: "--platform"},
		{in: []string{"linux/a,,linux/b"}, err: "--platform"},
		{env: "/", err: "DOCKER_DEFAULT_PLATFORM"},
	} {
		t.Setenv("DOCKER_DEFAULT_PLATFORM", tc.env)
		got, err := Platforms(tc.in)
		var names []string
		for _, p := range got {
			names = append(names, p.String())
		}
		check(t, tc.in, strings.Join(names, " "), err, tc.want, tc.err)
	}
}

func TestBuildArgs(t *testing.T) {
	t.Setenv("FROM_ENV", "e=1")
	for _, tc := range []struct {
		in    []string
		epoch string
		want  map[string]string
		err   string
	}{
		{in: []string{"A=1", "B=", "C=a=b", "FROM_ENV", "NOT_THERE", "A=2"}, want: map[string]string{"A": "2", "B": "", "C": "a=b", "FROM_ENV": "e=1"}},
		{epoch: "5", want: map[string]string{"SOURCE_DATE_EPOCH": "5"}},
		{in: []string{"SOURCE_DATE_EPOCH="}, epoch: "5", want: map[string]string{"SOURCE_DATE_EPOCH": ""}},
		{in: []string{"=1"}, err: "--build-arg"},
		{in: []string{""}, err: "--build-arg"},
	} {
		t.Setenv("SOURCE_DATE_EPOCH", tc.epoch)
		got, err := BuildArgs(tc.in)
		check(t, tc.in, got, err, tc.want, tc.err)
	}
}

func TestExtraHosts(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want llb.ExtraHost
		err  string
	}{
		{in: "a:1.2.3.4", want: llb.ExtraHost{Host: "a", IP: "1.2.3.4"}},
		{in: "a=::1", want: llb.ExtraHost{Host: "a", IP: "::1"}},
		{in: "a:fe80::1", want: llb.ExtraHost{Host: "a", IP: "fe80::1"}},
		{in: "a:[::1]", want: llb.ExtraHost{Host: "a", IP: "::1"}},
		{in: "a:host-gateway", want: llb.ExtraHost{Host: "a", IP: "host-gateway"}},
		{in: "a:fe80::1%eth0", err: "not an IP address"},
		{in: ":1.2.3.4", err: "not HOST:IP"},
		{in: "a b:1.2.3.4", err: "not HOST:IP"},
		{in: "a\n1.1.1.1 b:1.2.3.4", err: "not HOST:IP"},
		{in: "a:", err: "not an IP address"},
	} {
		got, err := ExtraHosts([]string{tc.in})
		check(t, tc.in, got, err, []llb.ExtraHost{tc.want}, tc.err)
	}
}

func TestUlimits(t *testing.T) {
	for _, tc := range []struct {
		in   []string
		want []llb.Ulimit
		err  string
	}{
		{in: []string{"nofile=1024:2048"}, want: []llb.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}}},
		{in: []string{"core=0", "cpu=5", "core=-1"}, want: []llb.Ulimit{{Name: "cpu", Soft: 5, Hard: 5}, {Name: "core", Soft: math.MaxUint64, Hard: math.MaxUint64}}},
		{in: []string{"nofile=2048:1024"}, err: "--ulimit"},
		{in: []string{"nofiles=1"}, err: "--ulimit"},
		{in: []string{"core=-2"}, err: "-1 for none"},
		{in: []string{"core="}, err: "--ulimit"},
	} {
		got, err := Ulimits(tc.in)
		check(t, tc.in, got, err, tc.want, tc.err)
	}
}

func TestShmSize(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want int64
		err  string
	}{
		{"", 0, ""}, {"0", 0, ""}, {"64m", 64 << 20, ""}, {"1.5g", 3 << 29, ""}, {"1024", 1024, ""},
		{"-1", 0, "--shm-size"}, {"big", 0, "--shm-size"},
	} {
		got, err := ShmSize(tc.in)
		check(t, tc.in, got, err, tc.want, tc.err)
	}
}

func TestSecrets(t *testing.T) {
	t.Setenv("TOKEN", "x")
	for _, tc := range []struct {
		in   string
		want build.Secret
		err  string
	}{
		{in: "id=a,src=f", want: build.Secret{ID: "a", Src: "f"}},
		{in: "id=a,source=f,type=file", want: build.Secret{ID: "a", Src: "f"}},
		{in: "id=a,env=V", want: build.Secret{ID: "a", Env: "V"}},
		{in: "type=env,id=a,src=V", want: build.Secret{ID: "a", Env: "V"}},
		{in: "type=env,id=a", want: build.Secret{ID: "a", Env: "a"}},
		{in: "id=TOKEN", want: build.Secret{ID: "TOKEN", Env: "TOKEN"}},
		{in: "id=file.txt", want: build.Secret{ID: "file.txt", Src: "file.txt"}},
		{in: `id=a,"src=f,g"`, want: build.Secret{ID: "a", Src: "f,g"}},
		{in: "src=f", err: "id= is missing"},
		{in: "id=a,src=f,env=V", err: "not both"},
		{in: "id=a,env=V,type=file", err: "not both"},
		{in: "id=a,type=vault", err: "unknown type"},
		{in: "id=a,mode=1", err: "unknown key"},
		{in: "a", err: "not key=value"},
	} {
		got, err := Secrets([]string{tc.in})
		check(t, tc.in, got, err, []build.Secret{tc.want}, tc.err)
	}
	if _, err := Secrets([]string{"id=a,src=f", "id=a,src=g"}); err == nil {
		t.Error("two secrets with one id")
	}
}
