package main

// demoExecutable is this program's own file. The link keeps pointing at the running
// program when a build has replaced the file meanwhile.
func demoExecutable() (string, error) { return "/proc/self/exe", nil }
