package llb

import (
	"strconv"
	"strings"
)

// Place says where a step stands among the steps of a build. It is data for progress, for records of what a step made last, and for
// reports; it is no part of a vertex's identity. The JSON form is that of package events.
//
// What is no instruction of a stage, as the download of an ADD, has a Group; its Stage and Step are those of the instruction that it
// serves, if there is one.
type Place struct {
	// Project names the build context that the Dockerfile belongs to: an absolute directory or an address without credentials.
	Project string `json:"-"`
	// Member is the name of the build among several that are done together, as a service of a compose file; "" for a build alone.
	Member string `json:"member,omitempty"`
	// Group is "internal" or "context NAME"; "" for an instruction.
	Group string `json:"group,omitempty"`
	// Stage is the name that the stage has in the Dockerfile, "stage-N" for one without a name, and Stages the number of stages.
	Stage  string `json:"stage,omitempty"`
	Stages int    `json:"stages,omitempty"`
	// Step counts the instructions of the stage that make a layer, from 1 on, and Steps is their number.
	Step  int `json:"step,omitempty"`
	Steps int `json:"steps,omitempty"`
	// Platform is the platform that the step runs on, as in Platform.String, Target the one that the image is for, and Platforms the
	// number of platforms that the build is for.
	Platform  string `json:"platform,omitempty"`
	Target    string `json:"target,omitempty"`
	Platforms int    `json:"platforms,omitempty"`
	// Cross says that the step's variables name another platform than the one that it runs on, so that String shows both.
	Cross bool `json:"cross,omitempty"`
}

// String returns what stands before the text of a step in progress output, as BuildKit has it: "[build 2/5] ", or "[linux/amd64->arm64
// build 2/5] " where the build is for several platforms. A Dockerfile's only stage is not named. The zero Place is "".
func (p Place) String() string {
	var words []string
	if p.Member != "" {
		words = append(words, p.Member)
	}
	if p.Platforms > 1 && p.Platform != "" {
		words = append(words, p.Platform+p.cross())
	}
	switch {
	case p.Group != "":
		words = append(words, p.Group)
	case p.Step > 0:
		if p.Stages > 1 {
			words = append(words, p.Stage)
		}
		total := strconv.Itoa(p.Steps)
		step := strconv.Itoa(p.Step)
		words = append(words, strings.Repeat(" ", max(0, len(total)-len(step)))+step+"/"+total)
	}
	if len(words) == 0 {
		return ""
	}
	return "[" + strings.Join(words, " ") + "] "
}

// cross returns "->arm64" if the step's target is to be shown, with the operating system if that is another.
func (p Place) cross() string {
	if !p.Cross || p.Target == p.Platform {
		return ""
	}
	os, _, _ := strings.Cut(p.Platform, "/")
	return "->" + strings.TrimPrefix(p.Target, os+"/")
}
