package control

// KindMirror (path JetStream) says that the mirror session of the instance that saw it
// has put everything that came to it before the sentinel into the streams, and that
// all of that is settled. Where mirrors share a subscription, what one of them brings
// says nothing of the others, nor of one that is away with copies in its session: so a
// proof needs one of every instance with a mirror, just as it needs a sighting of
// every MQTT session.
const KindMirror = "mirror"
