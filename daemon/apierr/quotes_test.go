package apierr

import (
	"testing"

	"github.com/moby/buildkit/solver/pb"
)

// What an error quotes is bounded, wherever a client says that its op comes from.
func TestQuotes(t *testing.T) {
	sources := []*pb.SourceInfo{nil, {Filename: "Dockerfile", Data: make([]byte, MaxQuoted/2+1)}, {Filename: string(make([]byte, maxName+1))}}
	at := []*pb.Location{{SourceIndex: 0}, {SourceIndex: 1, Ranges: make([]*pb.Range, 10*maxQuotes)}, {SourceIndex: 2}}
	for range 10 * maxQuotes {
		at = append(at, &pb.Location{SourceIndex: 1})
	}
	size, places := 0, Quotes(at, sources)
	for _, p := range places {
		size += p.Info.SizeVT()
		if len(p.Ranges) > maxQuotes {
			t.Errorf("a place has %d ranges", len(p.Ranges))
		}
	}
	if len(places) < 2 || len(places) > maxQuotes || size > MaxQuoted+maxQuotes*maxName {
		t.Errorf("%d places have sources of %d bytes", len(places), size)
	}
	if first := places[1].Info; first.Filename != "Dockerfile" || len(first.Data) == 0 {
		t.Errorf("the first place has no text: %s", first.Filename)
	}
}
