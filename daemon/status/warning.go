package status

import (
	"bytes"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// Warning returns a warning that a frontend has sent as an event. It has its lines if they are the Dockerfile's, which errors call by a
// name.
func Warning(req *gateway.WarnRequest, dockerfile string) events.Warning {
	w := events.Warning{
		Text: events.Text(string(req.Short)), URL: events.Text(req.Url), Detail: events.Text(string(bytes.Join(req.Detail, []byte("\n")))),
	}
	if req.Info.GetFilename() == dockerfile && len(req.Ranges) > 0 {
		first, last := req.Ranges[0], req.Ranges[len(req.Ranges)-1]
		w.Location = llb.Location{File: dockerfile, StartLine: int(first.GetStart().GetLine()), EndLine: int(last.GetEnd().GetLine())}
	}
	return w
}
