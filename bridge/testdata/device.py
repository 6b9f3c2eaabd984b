"""Devices as their makers write them: paho's MQTT client in Python.

One connection plays all devices of its tenant. It tells what comes down, a line of
JSON each, and acknowledges every command it has not yet seen, as often as it has to:
until the broker has it.

usage: device.py HOST PORT USER TENANT CLIENT_ID    (password in MQTT_PASSWORD)
"""

import json
import os
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

host, port, user, tenant, client_id = sys.argv[1:6]
seen = set()
say = threading.Lock()


def tell(**what):
    with say:
        print(json.dumps(what), flush=True)


def on_connect(client, _userdata, flags, code, _properties=None):
    tell(event="connected", code=str(code), session=bool(flags["session present"]))
    client.subscribe([(f"tenant/{tenant}/device/+/{t}", mqtt.SubscribeOptions(qos=1))
                      for t in ("shadow/desired", "commands", "commands/response")])


def on_subscribe(_client, _userdata, _mid, codes, _properties=None):
    tell(event="subscribed", codes=[str(c) for c in codes])


def on_message(client, _userdata, message):
    _, _, _, device, kind = message.topic.split("/", 4)
    p = message.properties
    payload = message.payload.decode()
    tell(event="message", device=device, kind=kind, qos=message.qos, retain=bool(message.retain),
         payload=json.loads(payload) if payload else None,
         correlation=getattr(p, "CorrelationData", b"").decode(),
         content_type=getattr(p, "ContentType", ""),
         expiry=getattr(p, "MessageExpiryInterval", None))
    if kind == "commands":
        command = json.loads(payload)["command_id"]
        if command not in seen:
            seen.add(command)
            client.publish(f"tenant/{tenant}/device/{device}/commands/ack",
                           json.dumps({"command_id": command, "details": {"by": client_id}}), qos=1)
    if kind == "shadow/desired" and payload:
        desired = json.loads(payload)
        client.publish(f"tenant/{tenant}/device/{device}/shadow/reported",
                       json.dumps({"reported": desired["desired"], "version": desired["version"]}), qos=1)


def on_disconnect(_client, _userdata, code, _properties=None):
    tell(event="disconnected", code=str(code))


client = mqtt.Client(client_id=client_id, protocol=mqtt.MQTTv5)
client.username_pw_set(user, os.environ["MQTT_PASSWORD"])
client.on_connect, client.on_subscribe = on_connect, on_subscribe
client.on_message, client.on_disconnect = on_message, on_disconnect
client.reconnect_delay_set(1, 1)
session = Properties(PacketTypes.CONNECT)
session.SessionExpiryInterval = 3600
client.connect_async(host, int(port), keepalive=10, clean_start=False, properties=session)
client.loop_forever(retry_first_connection=True)
