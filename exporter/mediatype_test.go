package exporter

import "testing"

// TestNotDistributable holds that a base image's layer that is not to be distributed becomes an ordinary one: the image names no other
// place to get it from, and tools leave such layers out when they push.
func TestNotDistributable(t *testing.T) {
	for _, name := range []string{"application/vnd.oci.image.layer.nondistributable.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"} {
		for oci, docker := range map[string]string{"": "", "gzip": ".gzip", "zstd": ".zstd"} {
			from := name + docker
			if name[12:19] == "vnd.oci" && oci != "" {
				from = name + "+" + oci
			}
			want := "application/vnd.oci.image.layer.v1.tar"
			if oci != "" {
				want += "+" + oci
			}
			got := ociMediaType(from)
			if got != want {
				t.Errorf("%s becomes %s, want %s", from, got, want)
			}
			if _, err := dockerMediaType(got); err != nil {
				t.Error(err)
			}
		}
	}
}
